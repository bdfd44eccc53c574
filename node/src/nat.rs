//! What observers on the internet see of this node, and what that says about the NAT before it (RFC 5780). Pure.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
};

use serde::Serialize;

use crate::rendezvous::{Scope, policy::scope_of_ip};

/// Observations remembered. The oldest goes.
pub const MAX_OBSERVATIONS: usize = 16;

/// How a network maps this node's port towards the internet: RFC 5780 section 4.3, as far as the observers can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mapping {
    /// Nobody has seen us in this family yet.
    #[default]
    Unknown,
    /// What is seen is what is listened on: no NAT.
    None,
    /// Another address or port, and only one observer so far.
    Some,
    /// The same address and port towards everybody: a hole can be punched.
    EndpointIndependent,
    /// Another one for each address; no observer told the ports of one address apart.
    AddressDependent,
    /// Another one for each address and port ("symmetric"): a hole cannot be punched.
    AddressAndPortDependent,
}

impl Mapping {
    /// Whether there is a NAT.
    pub fn is_nat(self) -> bool {
        !matches!(self, Self::Unknown | Self::None)
    }

    /// Whether nobody can be told an address at which this node would be reached.
    pub fn is_symmetric(self) -> bool {
        matches!(self, Self::AddressDependent | Self::AddressAndPortDependent)
    }

    /// For people.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Unknown => "nobody has seen this node from outside",
            Self::None => "no address translation",
            Self::Some => "address translation, of a kind that one observer cannot tell",
            Self::EndpointIndependent => {
                "one address and port towards everybody (endpoint-independent mapping)"
            }
            Self::AddressDependent => "another port towards each address (address-dependent mapping)",
            Self::AddressAndPortDependent => {
                "another port towards each destination (address- and port-dependent mapping, \"symmetric\")"
            }
        }
    }
}

/// Whom a network lets in at a port that this node has opened by writing out: RFC 5780 section 4.4, as far as the servers
/// can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Filtering {
    /// No server could try.
    #[default]
    Unknown,
    /// Everybody.
    EndpointIndependent,
    /// Other ports of an address that was written to; no second server could tell whether everybody.
    AtMostAddressDependent,
    /// Whoever is at an address that was written to.
    AddressDependent,
    /// Only the very address and port that were written to.
    AddressAndPortDependent,
}

impl Filtering {
    /// From whether a packet came in from another port of the address that was written to, and from an address that never
    /// was. `None`: not tried.
    pub fn judge(other_port: Option<bool>, other_address: Option<bool>) -> Self {
        match (other_port, other_address) {
            (_, Some(true)) => Self::EndpointIndependent,
            (Some(true), Some(false)) => Self::AddressDependent,
            (Some(true), None) => Self::AtMostAddressDependent,
            (Some(false), _) => Self::AddressAndPortDependent,
            (None, _) => Self::Unknown,
        }
    }

    /// For people.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Unknown => "no server could try who is let in",
            Self::EndpointIndependent => {
                "everybody is let in at a port in use (endpoint-independent filtering)"
            }
            Self::AtMostAddressDependent => {
                "other ports of an address written to are let in; a second server would tell whether everybody is"
            }
            Self::AddressDependent => {
                "only addresses that were written to are let in (address-dependent filtering)"
            }
            Self::AddressAndPortDependent => {
                "only who was written to is let in (address- and port-dependent filtering)"
            }
        }
    }
}

/// All that was seen, newest last.
#[derive(Debug, Default)]
pub struct Observations(VecDeque<Observation>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Observation {
    observer: SocketAddr,
    seen: SocketAddr,
}

impl Observations {
    /// The observer at this address sees us there. True where that is news.
    pub fn add(&mut self, observer: SocketAddr, seen: SocketAddr) -> bool {
        let observation = Observation { observer, seen };
        let known = self.0.contains(&observation);
        self.0.retain(|old| old.observer != observer);
        if self.0.len() >= MAX_OBSERVATIONS {
            self.0.pop_front();
        }
        self.0.push_back(observation);
        !known
    }

    /// The network is another one: what was seen is no longer true.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether this observer has told what it sees.
    pub fn heard_from(&self, observer: SocketAddr) -> bool {
        self.0.iter().any(|observation| observation.observer == observer)
    }

    /// Where others may try to reach us: what was seen last, of each family.
    pub fn candidates(&self) -> Vec<SocketAddr> {
        [false, true]
            .into_iter()
            .filter_map(|v6| self.of(v6).next_back().map(|observation| observation.seen))
            .collect()
    }

    /// Every place at which we are seen in one family.
    pub fn all(&self, v6: bool) -> Vec<SocketAddr> {
        let mut all: Vec<SocketAddr> = self.of(v6).map(|observation| observation.seen).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Our public IP addresses.
    pub fn public_ips(&self) -> Vec<IpAddr> {
        self.candidates().iter().map(SocketAddr::ip).collect()
    }

    /// How ports of one family are mapped, for a node that listens at these addresses.
    pub fn mapping(&self, v6: bool, listening: &[SocketAddr]) -> Mapping {
        // A server on our own network sees no NAT, whatever stands before the internet.
        let public = |seen: &&Observation| scope_of_ip(seen.seen.ip()) == Some(Scope::Public);
        let all: Vec<Observation> = self.of(v6).filter(public).copied().collect();
        let Some(first) = all.first() else { return Mapping::Unknown };
        if all.iter().all(|observation| listening.contains(&observation.seen)) {
            return Mapping::None;
        }
        if all.len() < 2 {
            return Mapping::Some;
        }
        if all.iter().all(|observation| observation.seen == first.seen) {
            return Mapping::EndpointIndependent;
        }
        let differ_at_one_ip = all.iter().any(|a| {
            all.iter()
                .any(|b| a.observer.ip() == b.observer.ip() && a.observer != b.observer && a.seen != b.seen)
        });
        if differ_at_one_ip { Mapping::AddressAndPortDependent } else { Mapping::AddressDependent }
    }

    fn of(&self, v6: bool) -> impl DoubleEndedIterator<Item = &Observation> {
        self.0.iter().filter(move |observation| observation.observer.is_ipv6() == v6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(seen: &[(&str, &str)]) -> Mapping {
        let mut observations = Observations::default();
        for (observer, seen) in seen {
            observations.add(observer.parse().unwrap(), seen.parse().unwrap());
        }
        observations.mapping(false, &["192.168.1.2:5000".parse().unwrap(), "9.9.9.9:5000".parse().unwrap()])
    }

    #[test]
    fn two_observers_tell_kinds_of_mapping_apart() {
        let (one, other_port, other_ip) = ("1.1.1.1:4001", "1.1.1.1:443", "2.2.2.2:4001");
        assert_eq!(mapping(&[]), Mapping::Unknown);
        assert_eq!(
            mapping(&[("[2::1]:1", "[2::2]:5000")]),
            Mapping::Unknown,
            "the other family says nothing"
        );
        assert_eq!(mapping(&[(one, "9.9.9.9:5000")]), Mapping::None);
        let lan = ("192.168.1.1:4001", "192.168.1.2:5000");
        assert_eq!(mapping(&[lan]), Mapping::Unknown, "a server on the same network cannot tell");
        assert_eq!(mapping(&[lan, (one, "8.8.8.8:5000")]), Mapping::Some);
        assert_eq!(mapping(&[(one, "8.8.8.8:5000")]), Mapping::Some);
        assert_eq!(mapping(&[(one, "8.8.8.8:7"), (other_port, "8.8.8.8:7")]), Mapping::EndpointIndependent);
        assert_eq!(
            mapping(&[(one, "8.8.8.8:7"), (other_port, "8.8.8.8:8")]),
            Mapping::AddressAndPortDependent
        );
        assert_eq!(mapping(&[(one, "8.8.8.8:7"), (other_ip, "8.8.8.8:8")]), Mapping::AddressDependent);
    }

    #[test]
    fn filtering_follows_from_who_got_in() {
        use Filtering::*;
        for (other_port, other_address, wanted) in [
            (None, None, Unknown),
            (None, Some(false), Unknown),
            (Some(false), None, AddressAndPortDependent),
            (Some(false), Some(false), AddressAndPortDependent),
            (Some(true), None, AtMostAddressDependent),
            (Some(true), Some(false), AddressDependent),
            (Some(true), Some(true), EndpointIndependent),
            (None, Some(true), EndpointIndependent),
        ] {
            assert_eq!(Filtering::judge(other_port, other_address), wanted);
        }
    }

    #[test]
    fn an_observer_that_sees_something_else_is_believed_anew() {
        let mut observations = Observations::default();
        let (observer, before, after) =
            ("1.1.1.1:1".parse().unwrap(), "8.8.8.8:7".parse().unwrap(), "8.8.8.8:9".parse().unwrap());
        assert!(observations.add(observer, before) && !observations.add(observer, before));
        assert!(observations.add(observer, after));
        assert_eq!(observations.candidates(), [after]);
        for port in 1..100 {
            observations.add(SocketAddr::new("1.1.1.1".parse().unwrap(), port), before);
        }
        assert_eq!(observations.0.len(), MAX_OBSERVATIONS);
    }
}
