//! AutoNAT, both versions: what makes a server of us, and the client that asks one server where we can be reached.

use std::{
    collections::VecDeque,
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use futures::StreamExt as _;
use libp2p::{
    Multiaddr, PeerId,
    autonat::{v1, v2},
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, SwarmEvent, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, behaviour::toggle::Toggle, dummy,
    },
};
use serde_json::json;

use crate::{
    Failure,
    clients::prepare,
    emit,
    options::{Command, Options},
    swarm::BehaviourEvent,
};

/// rust-libp2p gives a dial ten seconds, and a whole AutoNAT v2 request ten as well: the client of a dial that timed out
/// would never hear of it.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(6);

/// Of no use to us: version 1 asks on its own, and not at all when it is never time.
const NEVER: Duration = Duration::from_secs(3600);

/// Version 1 is client and server in one.
pub fn v1(local: PeerId, options: &Options) -> Toggle<v1::Behaviour> {
    let asks = asks(options, 1);
    let config = v1::Config {
        boot_delay: if asks { Duration::from_millis(500) } else { NEVER },
        retry_interval: if asks { Duration::from_secs(2) } else { NEVER },
        throttle_server_period: Duration::ZERO,
        ..v1::Config::default()
    };
    Toggle::from((asks || options.autonat).then(|| v1::Behaviour::new(local, config)))
}

/// The client of version 2, as shipped: it asks about one candidate every five seconds.
pub fn client(options: &Options) -> Toggle<v2::client::Behaviour> {
    Toggle::from(asks(options, 2).then(v2::client::Behaviour::default))
}

fn asks(options: &Options, version: u8) -> bool {
    options.command == Command::Reach && options.version == version
}

/// Connects to the target and waits until it has told whether we can be reached: at an --external address, or at any.
pub async fn reach(options: &Options) -> Result<(), Failure> {
    let (mut swarm, target) = prepare(options).await?;
    swarm.dial(target)?;
    loop {
        let (addr, verdict, reason) = match swarm.select_next_some().await {
            SwarmEvent::Behaviour(BehaviourEvent::AutonatV1(v1::Event::StatusChanged { new, .. })) => match new {
                v1::NatStatus::Public(addr) => (Some(addr), "public", String::new()),
                v1::NatStatus::Private => (None, "private", String::new()),
                v1::NatStatus::Unknown => continue,
            },
            SwarmEvent::Behaviour(BehaviourEvent::AutonatClient(told)) => {
                if !options.external.is_empty() && !options.external.contains(&told.tested_addr) {
                    continue;
                }
                match told.result {
                    Ok(()) => (Some(told.tested_addr), "public", String::new()),
                    Err(error) => (Some(told.tested_addr), "private", error.to_string()),
                }
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
            _ => continue,
        };
        let addr = addr.map(|addr| addr.to_string());
        emit("reach", json!({ "addr": addr, "verdict": verdict, "reason": reason }));
        return Ok(());
    }
}

/// Tells the others of addresses that may be our own, as identify does of what peers report.
pub struct Candidates(VecDeque<Multiaddr>);

impl Candidates {
    pub fn of(options: &Options) -> Self {
        Self(options.external.iter().cloned().collect())
    }
}

impl NetworkBehaviour for Candidates {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, _: FromSwarm) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        match self.0.pop_front() {
            Some(addr) => Poll::Ready(ToSwarm::NewExternalAddrCandidate(addr)),
            None => Poll::Pending,
        }
    }
}
