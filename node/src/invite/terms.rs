//! How long an invite is good, and for whom. The room's keys derive from the terms as well as from the secret: who strikes
//! them out of an invite holds the key of another, empty room.
//!
//! No server enforces them. Every member does, by its own clock and its own memory (`room.rs`): it lets nobody in after the
//! time, or, where the invite is for one guest, nobody but the host and the first who comes.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libp2p::PeerId;

use crate::room;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Terms {
    /// Unix seconds from which on nobody new is let in.
    pub expires: Option<u64>,
    /// For one guest of this host.
    pub host: Option<PeerId>,
}

impl Terms {
    /// Good for this long from now.
    pub fn expiring_in(mut self, time: Duration) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.expires = Some(now.saturating_add(time).as_secs());
        self
    }

    /// Whether its time is over.
    pub fn is_over(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|at| now.duration_since(UNIX_EPOCH).is_ok_and(|since| since.as_secs() >= at))
    }

    /// What a room enforces, on the monotonic clock.
    pub fn at(&self, now: Instant, time: SystemTime) -> room::Terms {
        let left = self.expires.map(|at| {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            Duration::from_secs(at).saturating_sub(since)
        });
        // A time too far away for the clock is no end.
        room::Terms { closes: left.and_then(|left| now.checked_add(left)), host: self.host }
    }

    /// What keys derive from; empty without terms.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(expires) = self.expires {
            out.push(1);
            out.extend_from_slice(&expires.to_be_bytes());
        }
        if let Some(host) = &self.host {
            out.push(2);
            out.extend_from_slice(&host.to_bytes());
        }
        out
    }

    /// Takes a parameter of an invite.
    pub(super) fn read(&mut self, parameter: &str) -> Result<(), ()> {
        match parameter.split_once('=') {
            Some(("expires", text)) => self.expires = Some(text.parse().map_err(|_| ())?),
            Some(("host", text)) => self.host = Some(text.parse().map_err(|_| ())?),
            _ => {}
        }
        Ok(())
    }

    /// Writes the parameters, each with its separator.
    pub(super) fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(expires) = self.expires {
            write!(f, "&expires={expires}")?;
        }
        if let Some(host) = &self.host {
            write!(f, "&host={host}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invite::{Invite, InviteError};

    fn invite() -> Invite {
        let mut invite =
            Invite::generate("kitchen".parse().unwrap(), vec!["/ip4/192.0.2.1/tcp/1".parse().unwrap()]);
        invite.terms = Terms { expires: Some(2_000_000_000), host: Some(PeerId::random()) };
        invite
    }

    #[test]
    fn terms_read_back_and_are_part_of_the_room() {
        let invite = invite();
        assert_eq!(invite.to_string().parse::<Invite>().unwrap(), invite);
        let mut keys = vec![invite.secrets().psk().to_vec()];
        for terms in [
            Terms::default(),
            Terms { expires: invite.terms.expires, host: None },
            Terms { expires: None, host: invite.terms.host },
            Terms { expires: Some(2_000_000_001), host: invite.terms.host },
        ] {
            keys.push(Invite { terms, ..invite.clone() }.secrets().psk().to_vec());
        }
        let different: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(different.len(), keys.len(), "who changes the terms is in another room");
    }

    #[test]
    fn terms_that_were_changed_struck_out_or_cut_off_are_noticed() {
        let text = invite().to_string();
        let later = text.replace("expires=2000000000", "expires=2000009999");
        let host = text.split("&host=").nth(1).unwrap().split('&').next().unwrap();
        for (wrong, error) in [
            (later, InviteError::Mistyped),
            (text.replace("&expires=2000000000", ""), InviteError::Mistyped),
            (text.replace(&format!("&host={host}"), ""), InviteError::Mistyped),
            (text.replace("expires=2000000000", "expires=soon"), InviteError::BadTerms),
            (text.replace(host, "ben"), InviteError::BadTerms),
            ("hallway:kitchen?expires=2000000000".to_owned(), InviteError::Mistyped),
        ] {
            assert_eq!(wrong.parse::<Invite>().unwrap_err(), error, "{wrong}");
        }
    }

    #[test]
    fn the_time_left_is_counted_on_the_clock_that_nobody_sets() {
        let terms = Terms::default().expiring_in(Duration::from_secs(60));
        let (now, time) = (Instant::now(), SystemTime::now());
        let closes = terms.at(now, time).closes.unwrap();
        assert!((58..=60).contains(&(closes - now).as_secs()));
        assert!(!terms.is_over(time) && terms.is_over(time + Duration::from_secs(61)));
        assert_eq!(terms.at(now, time + Duration::from_secs(90)).closes, Some(now), "over already");
        assert_eq!(Terms { expires: Some(u64::MAX), host: None }.at(now, time).closes, None);
    }
}
