//! Time to seal and to open a packet, beside what the cipher takes alone and a copy of the bytes: `cargo bench --bench seal`.
#![allow(clippy::expect_used, missing_docs, reason = "a program for people")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use criterion::{Criterion, criterion_group, criterion_main};
use hallway::session::keys::{MAX_OVERHEAD, Opener, OwnKey, Sealer};

/// Packets sealed before they are opened.
const BATCH: u64 = 64;
/// Bytes of a packet on a clean path, and of one with copies.
const SIZES: [usize; 2] = [38, 337];

fn seal_and_open(criterion: &mut Criterion) {
    for size in SIZES {
        let packet = vec![7u8; size];
        let key = OwnKey::random().export();
        let mut sealer = Sealer::new(&key);
        let mut opener = Opener::new();
        opener.install(Instant::now(), key);
        let cipher = || LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[3; 16]).expect("16 bytes"));
        let (alone, mut counter) = (cipher(), 0u128);
        let mut nonce = || {
            counter += 1;
            let bytes = counter.to_be_bytes();
            Nonce::assume_unique_for_key(*bytes.last_chunk().expect("16 is more than 12"))
        };

        let mut group = criterion.benchmark_group(format!("seal {size} bytes"));
        group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
        let mut sealed = Vec::with_capacity(size + MAX_OVERHEAD);
        group.bench_function("hallway", |b| {
            b.iter(|| sealer.seal(black_box(&packet), &mut sealed).map(drop).expect("no counter runs out"));
        });
        group.bench_function("baseline: AES-128-GCM alone", |b| {
            b.iter(|| {
                sealed.clear();
                sealed.extend_from_slice(black_box(&packet));
                alone.seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed).expect("sealing");
            });
        });
        let mut to = packet.clone();
        group.bench_function("baseline: memcpy of the bytes", |b| {
            b.iter(|| black_box(&mut to).copy_from_slice(black_box(&packet)));
        });
        group.finish();

        let mut group = criterion.benchmark_group(format!("open {size} bytes"));
        group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
        let mut opened = Vec::with_capacity(size + MAX_OVERHEAD);
        group.bench_function("hallway", |b| {
            b.iter_custom(|count| {
                in_batches(count, || {
                    let batch = (0..BATCH).map(|_| {
                        let mut sealed = Vec::new();
                        sealer.seal(&packet, &mut sealed).expect("no counter runs out");
                        sealed
                    });
                    let batch: Vec<_> = batch.collect();
                    let now = Instant::now();
                    for sealed in &batch {
                        opener.open(now, black_box(sealed), &mut opened).expect("our own packet");
                    }
                    now.elapsed()
                })
            });
        });
        group.bench_function("baseline: AES-128-GCM alone", |b| {
            b.iter_custom(|count| {
                in_batches(count, || {
                    let mut batch: Vec<_> = (0..BATCH)
                        .map(|_| {
                            let (nonce, mut bytes) = (nonce(), packet.clone());
                            let again = Nonce::try_assume_unique_for_key(nonce.as_ref()).expect("12 bytes");
                            alone.seal_in_place_append_tag(nonce, Aad::empty(), &mut bytes).expect("sealing");
                            (again, bytes)
                        })
                        .collect();
                    let began = Instant::now();
                    for (nonce, bytes) in &mut batch {
                        let nonce = Nonce::try_assume_unique_for_key(nonce.as_ref()).expect("12 bytes");
                        let bytes = black_box(bytes);
                        black_box(alone.open_in_place(nonce, Aad::empty(), bytes).expect("opening"));
                    }
                    began.elapsed()
                })
            });
        });
        group.bench_function("baseline: memcpy of the bytes", |b| {
            b.iter(|| black_box(&mut to).copy_from_slice(black_box(&packet)));
        });
        group.finish();
    }
}

/// Runs whole batches until there were `count` packets, and gives their share of the time that a batch says it took.
fn in_batches(count: u64, mut batch: impl FnMut() -> Duration) -> Duration {
    let batches = count.div_ceil(BATCH);
    let took: Duration = (0..batches).map(|_| batch()).sum();
    took.mul_f64(count as f64 / (batches * BATCH) as f64)
}

criterion_group!(benches, seal_and_open);
criterion_main!(benches);
