//! `hallway bench loss`: the same call over links that differ in nothing but how much they lose.

use super::lag::CallArgs;
use super::profile::Profile;

/// How much is lost, and how.
#[derive(Clone, Debug, clap::Args)]
pub struct LossArgs {
    /// Percent of packets lost, a call each
    #[arg(long = "rate", value_name = "PCT", value_delimiter = ',', default_values_t = [0.0, 2.0, 5.0, 10.0, 20.0, 30.0])]
    pub rates: Vec<f64>,
    /// Mean length of an outage in ms; 0 loses every packet by a draw of its own
    #[arg(long, value_name = "MS", default_value_t = 60.0)]
    pub burst_ms: f64,
    /// One-way delay in ms
    #[arg(long, value_name = "MS", default_value_t = 30.0)]
    pub delay_ms: f64,
    /// Standard deviation of the delay in ms
    #[arg(long, value_name = "MS", default_value_t = 10.0)]
    pub jitter_ms: f64,
    /// How each is measured.
    #[command(flatten)]
    pub calls: CallArgs,
}

impl LossArgs {
    /// One link for each rate.
    ///
    /// # Errors
    /// A rate that no link can lose.
    pub fn links(&self) -> anyhow::Result<Vec<Profile>> {
        let mut links = Vec::new();
        for rate in &self.rates {
            let mut spec = format!("delay={},jitter={},loss={rate}", self.delay_ms, self.jitter_ms);
            // Outages lose most but not all, and a little is lost between them: less than that is spread evenly.
            if self.burst_ms > 0.0 && *rate > 1.0 {
                spec.push_str(&format!(",burst={}", self.burst_ms));
            }
            links.push(spec.parse()?);
        }
        self.calls.seed(&mut links);
        Ok(links)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        loss: LossArgs,
    }

    #[test]
    fn every_rate_becomes_a_link_that_loses_that_much() {
        let args =
            Cli::try_parse_from(["loss", "--rate", "0,0.5,20", "--seed", "9"]).map(|cli| cli.loss).unwrap();
        let links = args.links().unwrap();
        let loss: Vec<f64> = links.iter().map(|link| link.ab.expected_loss() * 100.0).collect();
        assert!(loss.iter().zip([0.0, 0.5, 20.0]).all(|(is, want)| (is - want).abs() < 1e-6), "{loss:?}");
        assert!(links.iter().all(|link| link.seed == 9));
        let args = Cli::try_parse_from(["loss", "--rate", "95"]).map(|cli| cli.loss).unwrap();
        assert!(args.links().is_err());
    }
}
