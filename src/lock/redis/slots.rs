//! Which master of a Redis Cluster owns which slot.
//!
//! Nodes may contradict each other for a moment. Invariant: a slot's owner is the one with the highest config
//! epoch that any node has told (Redis Cluster specification, "Configuration epoch"), so an old view that comes
//! late changes nothing.

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;

use crc::{CRC_16_XMODEM, Crc};

use super::node::RedisNode;
use super::url::RedisEndpoint;

/// The masters of a cluster, and their slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SlotMap {
    /// In the order of their ids.
    masters: Vec<ClusterMaster>,
    /// For each slot the index of its owner in `masters`; empty before the first view.
    owners: Vec<Option<u16>>,
    /// For each replica's id the id of its master.
    replicas: HashMap<String, String>,
}

/// A master of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClusterMaster {
    id: String,
    pub(super) node: RedisNode,
    /// By what names the cluster's nodes may call it.
    hosts: Vec<String>,
    port: u16,
    /// The config epoch.
    epoch: u64,
}

/// What one node told of its cluster: the reply of `CLUSTER NODES`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ClusterView {
    masters: Vec<(ClusterMaster, Vec<RangeInclusive<u16>>)>,
    replicas: HashMap<String, String>,
    /// All nodes that it knows.
    ids: Vec<String>,
}

/// What a new view changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MapChange {
    Nothing,
    /// Masters or slots, without a loss.
    Moved,
    /// These masters were replicas before, and may lack the last writes.
    FailedOver(Vec<RedisNode>),
}

/// How many slots a cluster has.
pub(super) const SLOTS: u16 = 16384;

/// The slot of a key: that of its hash tag, if it has one (Redis Cluster specification, "Hash tags").
pub(super) fn slot_of(key: &str) -> u16 {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'));
    let hashed = match tag {
        Some((tag, _)) if !tag.is_empty() => tag,
        _ => key,
    };
    const CRC: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);
    CRC.checksum(hashed.as_bytes()) % SLOTS
}

// === impl ClusterView ===

impl ClusterView {
    /// Reads the reply of `CLUSTER NODES` from the node at `asked`; `None` if it is none.
    pub(super) fn parse(text: &str, asked: &RedisEndpoint) -> Option<Self> {
        let mut view = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let mut fields = line.split(' ');
            let id = fields.next()?;
            let address = fields.next()?;
            let flags = fields.next()?.split(',').collect::<Vec<_>>();
            let master = fields.next()?;
            let epoch = fields.nth(2)?.parse().ok()?;
            let is_connected = fields.next()? == "connected";
            view.ids.push(id.to_owned());
            let has = |flag| flags.contains(&flag);
            if has("slave") {
                view.replicas.insert(id.to_owned(), master.to_owned());
            }
            let is_known = has("myself") || is_connected;
            if !has("master") || !is_known || has("fail") || has("handshake") || has("noaddr") {
                continue;
            }
            let Some(master) = ClusterMaster::parse(id, address, epoch, asked) else {
                continue;
            };
            // A slot in brackets is on its way to another node.
            let slots = fields.filter(|slots| !slots.starts_with('['));
            view.masters
                .push((master, slots.map(slot_range).collect::<Option<_>>()?));
        }
        Some(view)
    }
}

/// `5` or `0-5460`.
fn slot_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (last < SLOTS).then_some(first..=last)
}

// === impl ClusterMaster ===

impl ClusterMaster {
    /// `address` is `ip:port@bus_port[,hostname[,more]]`; a node that knows no address of its own leaves the ip out.
    fn parse(id: &str, address: &str, epoch: u64, asked: &RedisEndpoint) -> Option<Self> {
        let mut parts = address.split(',');
        let (ip, port) = parts.next()?.split('@').next()?.rsplit_once(':')?;
        let port = port.parse().ok()?;
        let name = parts.next().unwrap_or_default();
        let (asked_host, has_tls) = match asked {
            RedisEndpoint::Tls { host, .. } => (host.as_str(), true),
            RedisEndpoint::Tcp { host, .. } => (host.as_str(), false),
            RedisEndpoint::Socket(_) => return None,
        };
        // A certificate is for a name, mostly.
        let wanted = if has_tls { [name, ip] } else { [ip, name] };
        let host = wanted.into_iter().find(|host| !host.is_empty());
        let host = host.unwrap_or(asked_host);
        let endpoint = RedisEndpoint::at(host.to_owned(), port, has_tls)?;
        let hosts = [ip, name, host].into_iter().filter(|host| !host.is_empty());
        Some(Self {
            id: id.to_owned(),
            node: RedisNode::new(endpoint, 0),
            hosts: hosts.map(str::to_owned).collect(),
            port,
            epoch,
        })
    }
}

// === impl SlotMap ===

impl SlotMap {
    /// All masters, in an order that only changes with them.
    pub(super) fn masters(&self) -> impl ExactSizeIterator<Item = &RedisNode> {
        self.masters.iter().map(|master| &master.node)
    }

    /// The index of the master that owns a slot; `None`: no master does.
    pub(super) fn owner(&self, slot: u16) -> Option<usize> {
        let owner = self.owners.get(usize::from(slot)).copied().flatten();
        owner.map(usize::from)
    }

    /// The index of the master that a redirection names.
    pub(super) fn find(&self, host: &str, port: u16) -> Option<usize> {
        let is_it = |master: &ClusterMaster| {
            master.port == port && master.hosts.iter().any(|known| known == host)
        };
        self.masters.iter().position(is_it)
    }

    /// The index of the master at this port of the host of another master.
    pub(super) fn find_beside(&self, other: usize, port: u16) -> Option<usize> {
        let hosts = &self.masters.get(other)?.hosts;
        hosts.iter().find_map(|host| self.find(host, port))
    }

    /// Takes over what a node told.
    pub(super) fn merge(&mut self, view: &ClusterView) -> MapChange {
        // All masters, those known first, each as it was told last.
        let mut all = self.masters.clone();
        let mut owners = self.owners.clone();
        owners.resize(usize::from(SLOTS), None);
        let mut is_used = vec![false; all.len()];
        for (master, ranges) in &view.masters {
            let known = all.iter().position(|known| known.id == master.id);
            let at = known.unwrap_or(all.len());
            match all.get_mut(at) {
                Some(known) if master.epoch >= known.epoch => *known = master.clone(),
                Some(_) => {}
                None => {
                    all.push(master.clone());
                    is_used.push(false);
                }
            }
            is_used[at] |= ranges.is_empty();
            let is_newer = |owner: u16| {
                let owner = &all[usize::from(owner)];
                master.epoch > owner.epoch || !view.ids.contains(&owner.id)
            };
            for slot in ranges.iter().cloned().flatten() {
                let owner = &mut owners[usize::from(slot)];
                if owner.is_none_or(is_newer) {
                    *owner = u16::try_from(at).ok();
                }
            }
        }
        for owner in owners.iter().flatten() {
            is_used[usize::from(*owner)] = true;
        }
        let mut used: Vec<usize> = (0..all.len()).filter(|at| is_used[*at]).collect();
        used.sort_by(|a, b| all[*a].id.cmp(&all[*b].id));
        let mut places = vec![None; all.len()];
        for (place, at) in used.iter().enumerate() {
            places[*at] = u16::try_from(place).ok();
        }
        let place = |owner: Option<u16>| owner.and_then(|owner| places[usize::from(owner)]);
        let merged = Self {
            masters: used.iter().map(|at| all[*at].clone()).collect(),
            owners: owners.into_iter().map(place).collect(),
            replicas: view.replicas.clone(),
        };
        let change = self.change_to(&merged);
        *self = merged;
        change
    }

    fn change_to(&self, other: &Self) -> MapChange {
        if (&self.masters, &self.owners) == (&other.masters, &other.owners) {
            return MapChange::Nothing;
        }
        let has = |map: &Self, id: &str| map.masters.iter().any(|master| master.id == *id);
        let mut promoted = BTreeSet::new();
        for slot in 0..SLOTS {
            let (Some(old), Some(at)) = (self.owner(slot), other.owner(slot)) else {
                continue;
            };
            let (old, new) = (&self.masters[old].id, &other.masters[at].id);
            let was_replica = || self.replicas.get(new) == Some(old);
            if old != new && (was_replica() || (!has(self, new) && !has(other, old))) {
                promoted.insert(at);
            }
        }
        if promoted.is_empty() {
            return MapChange::Moved;
        }
        let promoted = promoted
            .into_iter()
            .map(|at| other.masters[at].node.clone());
        MapChange::FailedOver(promoted.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> RedisEndpoint {
        RedisEndpoint::at("seed".into(), 6379, false).expect("an endpoint")
    }

    fn view(lines: &[&str]) -> ClusterView {
        ClusterView::parse(&lines.join("\n"), &asked()).expect("a view")
    }

    fn labels(map: &SlotMap) -> Vec<&str> {
        map.masters().map(|node| &*node.label).collect()
    }

    fn owner(map: &SlotMap, slot: u16) -> &str {
        labels(map)[map.owner(slot).expect("an owner")]
    }

    const A: &str = "a 127.0.0.1:1@11 myself,master - 0 0 1 connected 0-8191";
    const B: &str = "b 127.0.0.1:2@12,name-b master - 0 0 2 connected 8192-16383";
    const C: &str = "c 127.0.0.1:3@13 slave a 0 0 1 connected";

    #[test]
    fn a_slot_is_that_of_the_hash_tag() {
        // Redis: CLUSTER KEYSLOT.
        for (key, slot) in [
            ("123456789", 12739),
            ("{user1000}.following", 3443),
            ("user1000", 3443),
            ("foo{}{bar}", 8363),
            ("foo{{bar}}zap", 4015),
            ("foo{bar}{zap}", 5061),
        ] {
            assert_eq!(slot_of(key), slot, "{key}");
        }
    }

    #[test]
    fn a_view_has_the_masters_with_their_slots() {
        let mut map = SlotMap::default();
        let importing = "d 127.0.0.1:4@14 master - 0 0 0 connected [93-<-a]";
        let failed = "e 127.0.0.1:5@15 master,fail - 0 0 9 connected 0";
        let unnamed = "f :6@16 master - 0 0 3 connected 5";
        let change = map.merge(&view(&[A, B, C, importing, failed, unnamed]));
        assert_eq!(change, MapChange::Moved, "the first view is no failover");
        let expected = [
            "127.0.0.1:1/0",
            "127.0.0.1:2/0",
            "127.0.0.1:4/0",
            "seed:6/0",
        ];
        assert_eq!(labels(&map), expected, "masters only");
        assert_eq!(owner(&map, 0), expected[0]);
        assert_eq!(owner(&map, 5), expected[3], "by the higher epoch");
        assert_eq!(owner(&map, 16383), expected[1]);
        for (host, port, at) in [
            ("127.0.0.1", 2, Some(1)),
            ("name-b", 2, Some(1)),
            ("name-b", 3, None),
        ] {
            assert_eq!(map.find(host, port), at, "{host}:{port}");
        }
        assert_eq!(
            map.merge(&view(&[A, B, C, importing, failed, unnamed])),
            MapChange::Nothing
        );
        assert_eq!(SlotMap::default().owner(0), None, "nothing is known");
        assert_eq!(ClusterView::parse("ERR no cluster", &asked()), None);
    }

    #[test]
    fn the_name_of_a_node_counts_with_tls() {
        let asked = RedisEndpoint::at("seed".into(), 6379, true).expect("an endpoint");
        let view = ClusterView::parse(&[A, B].join("\n"), &asked).expect("a view");
        let mut map = SlotMap::default();
        map.merge(&view);
        assert_eq!(
            labels(&map),
            ["rediss://127.0.0.1:1/0", "rediss://name-b:2/0"]
        );
    }

    #[test]
    fn a_replica_that_owns_the_slots_of_its_master_is_a_failover() {
        let mut map = SlotMap::default();
        map.merge(&view(&[A, B, C]));
        let promoted = "c 127.0.0.1:3@13 myself,master - 0 0 3 connected 0-8191";
        let demoted = "a 127.0.0.1:1@11 slave c 0 0 3 connected";
        let change = map.merge(&view(&[demoted, B, promoted]));
        let MapChange::FailedOver(masters) = change else {
            panic!("a failover: {change:?}");
        };
        let masters: Vec<_> = masters.iter().map(|master| &*master.label).collect();
        assert_eq!(masters, ["127.0.0.1:3/0"], "that of the slots alone");
        assert_eq!(labels(&map), ["127.0.0.1:2/0", "127.0.0.1:3/0"]);
        assert_eq!(owner(&map, 0), "127.0.0.1:3/0");
        assert_eq!(
            map.merge(&view(&[A, B, C])),
            MapChange::Nothing,
            "an old view comes late"
        );
        assert_eq!(owner(&map, 0), "127.0.0.1:3/0");
    }

    #[test]
    fn a_slot_that_moves_is_no_failover() {
        let mut map = SlotMap::default();
        map.merge(&view(&[A, B, C]));
        let from = "a 127.0.0.1:1@11 myself,master - 0 0 1 connected 1-8191";
        let to = "b 127.0.0.1:2@12 master - 0 0 3 connected 0 8192-16383";
        assert_eq!(map.merge(&view(&[from, to, C])), MapChange::Moved);
        assert_eq!(owner(&map, 0), "127.0.0.1:2/0");
        let last = "b 127.0.0.1:2@12 master - 0 0 4 connected 0-16383";
        let empty = "a 127.0.0.1:1@11 myself,master - 0 0 1 connected";
        assert_eq!(
            map.merge(&view(&[empty, last, C])),
            MapChange::Moved,
            "all of them"
        );
    }

    #[test]
    fn a_cluster_that_was_made_anew_counts_with_lower_epochs() {
        let mut map = SlotMap::default();
        map.merge(&view(&[
            "old 127.0.0.1:1@11 myself,master - 0 0 9 connected 0-16383",
        ]));
        let new = view(&["new 127.0.0.1:1@11 myself,master - 0 0 1 connected 0-16383"]);
        let change = map.merge(&new);
        assert!(
            matches!(change, MapChange::FailedOver(_)),
            "with none of the locks: {change:?}"
        );
    }
}
