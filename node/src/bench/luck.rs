//! Seeded luck that is the same on every machine and in every version of every dependency.
//!
//! A recorded measurement names its seed, and must be repeatable years later: `rand` does not promise that for its
//! standard generators, so this one is written out (xoshiro256**, seeded by splitmix64; Blackman and Vigna, 2018).

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Luck([u64; 4]);

impl Luck {
    /// The stream that belongs to `seed`.
    pub fn seeded(seed: u64) -> Luck {
        let mut z = seed;
        let mut state = [0u64; 4];
        for word in &mut state {
            z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut y = z;
            y = (y ^ (y >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            y = (y ^ (y >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            *word = y ^ (y >> 31);
        }
        Luck(state)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.0;
        let out = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Even over (0, 1]; never 0, so its logarithm is finite.
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 1.0) / (1u64 << 53) as f64
    }

    /// Even over (`from`, `to`].
    pub fn between(&mut self, from: f64, to: f64) -> f64 {
        from + (to - from) * self.unit()
    }

    /// Exponential with this mean: the time until a memoryless thing happens.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -self.unit().ln() * mean
    }

    /// Normal, mean 0, standard deviation 1.
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_of_a_seed_never_changes() {
        let mut luck = Luck::seeded(7);
        let first: Vec<u64> = (0..3).map(|_| luck.bits()).collect();
        let mut again = Luck::seeded(7);
        assert_eq!(first, (0..3).map(|_| again.bits()).collect::<Vec<_>>());
        // Reference values of xoshiro256** with state {1, 2, 3, 4}, from its authors' C code.
        let mut reference = Luck([1, 2, 3, 4]);
        assert_eq!([reference.bits(), reference.bits(), reference.bits()], [11520, 0, 1_509_978_240]);
    }

    #[test]
    fn the_moments_are_those_of_the_distributions() {
        let mut luck = Luck::seeded(1);
        let n = 200_000;
        let mean = (0..n).map(|_| luck.exponential(3.0)).sum::<f64>() / f64::from(n);
        assert!((mean - 3.0).abs() < 0.05, "{mean}");
        let variance = (0..n).map(|_| luck.normal().powi(2)).sum::<f64>() / f64::from(n);
        assert!((variance - 1.0).abs() < 0.02, "{variance}");
    }
}
