//! Which connections there are to whom, and how each runs.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use futures::StreamExt as _;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::ConnectedPoint,
    multiaddr::Protocol,
    swarm::{ConnectionId, SwarmEvent},
};

use crate::swarm::{Behaviour, BehaviourEvent, is_circuit};

#[derive(Default)]
pub struct Connections {
    paths: HashMap<PeerId, BTreeMap<ConnectionId, &'static str>>,
}

impl Connections {
    /// Takes note of what is up and what has gone; the peer, when it is about one.
    pub fn on_event(&mut self, event: &SwarmEvent<BehaviourEvent>) -> Option<PeerId> {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                let path = path_of(endpoint.get_remote_address());
                // Who is dialled through a relay sees no more than the relay's address.
                let relayed = matches!(endpoint, ConnectedPoint::Listener { .. }) && endpoint.is_relayed();
                let path = if relayed { "relayed" } else { path };
                self.paths.entry(*peer_id).or_default().insert(*connection_id, path);
                Some(*peer_id)
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } => {
                self.paths.entry(*peer_id).or_default().remove(connection_id);
                Some(*peer_id)
            }
            _ => None,
        }
    }

    /// The paths of what is up to a peer.
    pub fn to(&self, peer: &PeerId) -> Vec<&'static str> {
        self.paths.get(peer).map(|paths| paths.values().copied().collect()).unwrap_or_default()
    }

    pub fn path(&self, peer: &PeerId, connection: ConnectionId) -> &'static str {
        self.paths.get(peer).and_then(|paths| paths.get(&connection)).copied().unwrap_or("direct")
    }

    /// Goes on for so long, so that what is surplus can go.
    pub async fn settle(&mut self, swarm: &mut Swarm<Behaviour>, time: Duration) {
        let _ = tokio::time::timeout(time, async {
            loop {
                self.on_event(&swarm.select_next_some().await);
            }
        })
        .await;
    }
}

/// How a connection to or from there runs, in flare's words.
pub fn path_of(addr: &Multiaddr) -> &'static str {
    if is_circuit(addr) {
        "relayed"
    } else if addr.iter().any(|part| part == Protocol::QuicV1) {
        "direct/quic-v1"
    } else {
        "direct/tcp"
    }
}
