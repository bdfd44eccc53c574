//! The plans to choose from, by what the call is for, how bad the path is, and how much delay is taken for clarity.

use super::{Delay, Policy, Profile, loss::Grade};
use crate::{opus::Application, time::Samples};

/// One line of the tables below: frame, coder, kb/s of mono, FEC, copies, copies in the packet half a frame later.
pub(super) type Plan = (Samples, Application, u32, bool, &'static [u8], &'static [u8]);

/// Plans for a profile and grade, richest first. The last is the least that we send: where even that does not fit, loss
/// does the rest. The lossy ones follow the measured frontier: 20 ms speech with whole copies beats every in-codec tool,
/// copies at even distances before odd ones on a thin uplink, FEC only where no copy
/// fits (below 18 kb/s the encoder has no bits for it).
pub(super) fn plans(profile: Profile, grade: Grade, delay: Delay) -> &'static [Plan] {
    use Application::{LowDelay, Voip};
    const MS_2_5: Samples = Samples::MS_2_5;
    const MS_5: Samples = Samples::MS_5;
    const MS_10: Samples = Samples::MS_10;
    const MS_20: Samples = Samples::MS_20;
    match (profile, grade) {
        (Profile::Talk, Grade::Clean) => &[
            (MS_5, LowDelay, 52, false, &[], &[]),
            (MS_10, LowDelay, 64, false, &[], &[]),
            (MS_10, Voip, 32, false, &[], &[]),
            (MS_20, Voip, 32, false, &[], &[]),
            (MS_20, Voip, 24, false, &[], &[]),
            (MS_20, Voip, 20, false, &[], &[]),
            (MS_20, Voip, 16, false, &[], &[]),
            (MS_20, Voip, 12, false, &[], &[]),
        ],
        (Profile::Talk, Grade::Light) => &[
            (MS_10, LowDelay, 54, false, &[1], &[]),
            (MS_20, Voip, 32, false, &[1, 2], &[]),
            (MS_20, Voip, 24, false, &[1, 2], &[]),
            (MS_20, Voip, 16, false, &[1, 2], &[]),
            (MS_20, Voip, 16, false, &[2], &[]),
            (MS_20, Voip, 16, false, &[], &[]),
            (MS_20, Voip, 12, false, &[], &[]),
        ],
        // Little delay leaves little time for copies to come: shorter frames, and more of them.
        (Profile::Talk, Grade::Lossy | Grade::Bad) if delay == Delay::Quick => &[
            (MS_10, Voip, 24, false, &[1, 2, 3, 4, 5, 6], &[]),
            (MS_10, Voip, 16, false, &[1, 2, 3, 4, 5, 6], &[]),
            (MS_10, Voip, 16, false, &[1, 2, 3, 4], &[]),
            (MS_10, Voip, 16, false, &[2, 4], &[]),
            (MS_20, Voip, 16, false, &[1, 2], &[]),
            (MS_20, Voip, 16, false, &[2], &[]),
            (MS_20, Voip, 20, true, &[], &[]),
            (MS_20, Voip, 16, false, &[], &[]),
            (MS_20, Voip, 12, false, &[], &[]),
        ],
        (Profile::Talk, Grade::Lossy | Grade::Bad) if delay == Delay::Safe => &[
            (MS_20, Voip, 20, false, &[1, 2, 3, 4, 5, 6], &[]),
            (MS_20, Voip, 16, false, &[1, 2, 3, 4, 5, 6], &[]),
            (MS_20, Voip, 16, false, &[2, 4, 6], &[]),
            (MS_20, Voip, 16, false, &[2, 4], &[]),
            (MS_20, Voip, 16, false, &[3], &[]),
            (MS_20, Voip, 20, true, &[], &[]),
            (MS_20, Voip, 16, false, &[], &[]),
            (MS_20, Voip, 12, false, &[], &[]),
        ],
        (Profile::Talk, Grade::Lossy) => &[
            (MS_20, Voip, 16, false, &[1, 2, 3, 4], &[1, 2, 3, 4]),
            (MS_20, Voip, 26, false, &[1, 2, 3, 4], &[]),
            (MS_20, Voip, 20, false, &[1, 2, 3, 4], &[]),
            (MS_20, Voip, 16, false, &[1, 2, 3, 4], &[]),
            (MS_20, Voip, 16, false, &[2, 4], &[]),
            (MS_20, Voip, 16, false, &[2], &[]),
            (MS_20, Voip, 20, true, &[], &[]),
            (MS_20, Voip, 16, false, &[], &[]),
            (MS_20, Voip, 12, false, &[], &[]),
        ],
        (Profile::Talk, Grade::Bad) => &[
            (MS_20, Voip, 16, false, &[1, 2, 3, 4], &[1, 2, 3, 4]),
            (MS_20, Voip, 24, false, &[1, 2, 3, 4, 5], &[]),
            (MS_20, Voip, 16, false, &[1, 2, 3, 4, 5], &[]),
            (MS_20, Voip, 16, false, &[2, 4], &[]),
            (MS_20, Voip, 16, false, &[2], &[]),
            (MS_20, Voip, 20, true, &[], &[]),
            (MS_20, Voip, 16, false, &[], &[]),
            (MS_20, Voip, 12, false, &[], &[]),
        ],
        (Profile::Music, Grade::Clean) => &[
            (MS_2_5, LowDelay, 112, false, &[], &[]),
            (MS_5, LowDelay, 96, false, &[], &[]),
            (MS_10, LowDelay, 80, false, &[], &[]),
            (MS_20, LowDelay, 64, false, &[], &[]),
            (MS_20, LowDelay, 48, false, &[], &[]),
        ],
        (Profile::Music, Grade::Light | Grade::Lossy) => &[
            (MS_10, LowDelay, 80, false, &[1, 2], &[]),
            (MS_10, LowDelay, 64, false, &[2], &[]),
            (MS_20, LowDelay, 64, false, &[1], &[]),
            (MS_20, LowDelay, 48, false, &[], &[]),
        ],
        (Profile::Music, Grade::Bad) => &[
            (MS_10, LowDelay, 64, false, &[1, 2, 3, 4, 5, 6], &[]),
            (MS_10, LowDelay, 64, false, &[2, 4, 6], &[]),
            (MS_20, LowDelay, 48, false, &[1, 2], &[]),
            (MS_20, LowDelay, 48, false, &[1], &[]),
            (MS_20, LowDelay, 48, false, &[], &[]),
        ],
    }
}

pub(super) fn plan(profile: Profile, channels: u8, grade: Grade, delay: Delay, at: usize) -> Policy {
    let (frame, application, kbps, fec, copies, half) = plans(profile, grade, delay)[at];
    let bitrate = kbps * 1000 * if channels == 2 { 3 } else { 2 } / 2;
    // The speech encoder's noise shaping expects 20 % on lossy paths: it gains on every voice measured, at fewer bytes. The
    // other coder would spend bits on frames that need no past; copies do more.
    let speech = application == Application::Voip;
    let loss_perc = if speech { 20 } else { 0 };
    let complexity = if speech { 9 } else { 5 };
    Policy {
        frame,
        application,
        bitrate,
        complexity,
        fec,
        loss_perc,
        dred_ms: 0,
        copies: copies.to_vec(),
        half: half.to_vec(),
    }
}
