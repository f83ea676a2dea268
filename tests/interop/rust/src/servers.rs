//! The relay and the listener: they run until told to stop.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures::StreamExt as _;
use libp2p::{Multiaddr, PeerId, Swarm, dcutr, identify, multiaddr::Protocol, relay, swarm::SwarmEvent};
use serde_json::{Value, json};

use crate::{
    Failure,
    connections::Connections,
    emit,
    options::Options,
    swarm::{Behaviour, BehaviourEvent, build, is_circuit},
};

/// Serves circuit relay v2 until told to stop.
pub async fn relay(
    options: &Options,
    stop: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let mut swarm = build(options)?;
    for addr in bind(&mut swarm, options).await? {
        // Reservations carry the relay's external addresses; a client fails on a reservation without any.
        swarm.add_external_address(addr);
    }
    tokio::pin!(stop);
    loop {
        tokio::select! {
            _ = swarm.select_next_some() => {}
            stopped = &mut stop => return stopped,
        }
    }
}

/// Serves ping, identify and echo until told to stop, directly and through the relays it reserves on.
pub async fn listen(
    options: &Options,
    stop: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let mut swarm = build(options)?;
    bind(&mut swarm, options).await?;
    for relay in &options.relays {
        swarm.listen_on(relay.clone().with(Protocol::P2pCircuit))?;
    }
    let mut reservations = Reservations::default();
    let mut connections = Connections::default();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            event = swarm.select_next_some() => {
                if let SwarmEvent::ListenerClosed { reason: Err(error), .. } = event {
                    return Err(format!("no reservation: {error}").into());
                }
                reservations.on_event(&event);
                report_punch(&event);
                if let Some(peer) = connections.on_event(&event) {
                    let paths = connections.to(&peer);
                    emit("connections", json!({ "peer": peer.to_string(), "paths": paths }));
                }
            }
            stopped = &mut stop => return stopped,
        }
    }
}

/// What must have happened before a reservation is printed: the relay accepted, the circuit address is up, and the
/// relay told us by identify where it sees us (DCUtR takes its addresses when a connection comes, not later).
#[derive(Default)]
struct Reservations {
    accepted: HashSet<PeerId>,
    identified: HashSet<PeerId>,
    addrs: HashMap<PeerId, Multiaddr>,
}

impl Reservations {
    fn on_event(&mut self, event: &SwarmEvent<BehaviourEvent>) {
        let relay = match event {
            SwarmEvent::NewListenAddr { address, .. } if is_circuit(address) => {
                let Some(relay) = address.iter().find_map(|part| match part {
                    Protocol::P2p(id) => Some(id),
                    _ => None,
                }) else {
                    return;
                };
                self.addrs.insert(relay, address.clone());
                relay
            }
            SwarmEvent::Behaviour(BehaviourEvent::RelayClient(
                relay::client::Event::ReservationReqAccepted { relay_peer_id, renewal: false, .. },
            )) => {
                self.accepted.insert(*relay_peer_id);
                *relay_peer_id
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id, ..
            })) => {
                self.identified.insert(*peer_id);
                *peer_id
            }
            _ => return,
        };
        if self.accepted.contains(&relay) && self.identified.contains(&relay) {
            if let Some(addr) = self.addrs.remove(&relay) {
                emit("reserved", json!({ "relay": relay.to_string(), "addrs": [addr.to_string()] }));
            }
        }
    }
}

pub fn report_punch(event: &SwarmEvent<BehaviourEvent>) {
    if let SwarmEvent::Behaviour(BehaviourEvent::Dcutr(dcutr::Event { remote_peer_id, result })) = event {
        let error = match result {
            Ok(_) => Value::Null,
            Err(error) => json!(error.to_string()),
        };
        emit(
            "punch",
            json!({ "peer": remote_peer_id.to_string(), "success": result.is_ok(), "detail": error }),
        );
    }
}

/// Listens and prints the addresses once every listener has some and no more have come for a moment.
pub async fn bind(swarm: &mut Swarm<Behaviour>, options: &Options) -> Result<Vec<Multiaddr>, Failure> {
    let mut wanted = options.listen.clone();
    if wanted.is_empty() {
        wanted.push("/ip4/127.0.0.1/tcp/0".parse()?);
    }
    let mut waiting = HashSet::new();
    for addr in wanted {
        waiting.insert(swarm.listen_on(addr)?);
    }
    let mut addrs: Vec<Multiaddr> = Vec::new();
    loop {
        let patience = if waiting.is_empty() { Duration::from_millis(50) } else { options.timeout };
        match tokio::time::timeout(patience, swarm.select_next_some()).await {
            Ok(SwarmEvent::NewListenAddr { listener_id, address }) => {
                waiting.remove(&listener_id);
                addrs.push(address);
            }
            Ok(SwarmEvent::ListenerError { error, .. }) => return Err(error.into()),
            Ok(_) => {}
            Err(_) if waiting.is_empty() => break,
            Err(_) => return Err("a listener did not come up within the timeout".into()),
        }
    }
    let local = *swarm.local_peer_id();
    let texts: Vec<String> = addrs.iter().map(|addr| format!("{addr}/p2p/{local}")).collect();
    emit("listening", json!({ "peer": local.to_string(), "addrs": texts }));
    Ok(addrs)
}
