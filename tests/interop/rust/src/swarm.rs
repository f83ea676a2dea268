//! The swarm: QUIC, TCP with TLS or Noise and yamux, a relay client always, a relay and DCUtR when asked for. It dials nobody
//! on its own.

use std::time::Duration;

use futures::{AsyncWriteExt as _, StreamExt as _};
use libp2p::{
    Multiaddr, StreamProtocol, Swarm, SwarmBuilder, autonat, dcutr, identify,
    identity::Keypair,
    multiaddr::Protocol,
    noise, ping, relay,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
    tcp, tls, yamux,
};
use libp2p_stream as stream;

use crate::{
    Failure,
    options::{Command, Options},
    perf, reach,
};

pub const ECHO: StreamProtocol = StreamProtocol::new("/echo/1.0.0");

#[derive(NetworkBehaviour)]
pub struct Behaviour {
    pub relay_client: relay::client::Behaviour,
    pub relay: Toggle<relay::Behaviour>,
    pub dcutr: Toggle<dcutr::Behaviour>,
    pub autonat_v1: Toggle<autonat::v1::Behaviour>,
    pub autonat_client: Toggle<autonat::v2::client::Behaviour>,
    pub autonat_server: Toggle<autonat::v2::server::Behaviour>,
    pub candidates: reach::Candidates,
    pub identify: identify::Behaviour,
    pub ping: ping::Behaviour,
    pub stream: stream::Behaviour,
}

/// One swarm for each choice of security, which is a type to rust-libp2p.
macro_rules! swarm {
    ($options:expr, $interval:expr, $security:expr) => {
        SwarmBuilder::with_existing_identity(identity(&$options.key)?)
            .with_tokio()
            .with_tcp(tcp::Config::default().nodelay(true), $security, yamux::Config::default)?
            .with_quic()
            .with_relay_client($security, yamux::Config::default)?
            .with_behaviour(|key, relay_client| {
                let local = key.public().to_peer_id();
                Behaviour {
                    relay_client,
                    relay: Toggle::from(
                        ($options.command == Command::Relay)
                            .then(|| relay::Behaviour::new(local, relay_config($options.no_limits))),
                    ),
                    dcutr: Toggle::from($options.punch.then(|| dcutr::Behaviour::new(local))),
                    autonat_v1: reach::v1(local, $options),
                    autonat_client: reach::client($options),
                    autonat_server: Toggle::from($options.autonat.then(Default::default)),
                    candidates: reach::Candidates::of($options),
                    identify: identify::Behaviour::new(
                        identify::Config::new("ipfs/0.1.0".to_owned(), key.public())
                            .with_agent_version("interop-rust".to_owned()),
                    ),
                    ping: ping::Behaviour::new(ping::Config::new().with_interval($interval)),
                    stream: stream::Behaviour::new(),
                }
            })?
            .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(3600)))
            .with_connection_timeout(reach::DIAL_TIMEOUT)
            .build()
    };
}

pub fn build(options: &Options) -> Result<Swarm<Behaviour>, Failure> {
    // A pinger prints each pong; the others only answer (and ping once in a long while).
    let interval = match options.command {
        Command::Ping => Duration::from_millis(50),
        _ => Duration::from_secs(3600),
    };
    let swarm = match options.security.as_str() {
        "" => swarm!(options, interval, (tls::Config::new, noise::Config::new)),
        "tls" => swarm!(options, interval, tls::Config::new),
        "noise" => swarm!(options, interval, noise::Config::new),
        other => return Err(format!("unknown security {other:?}").into()),
    };
    tokio::spawn(serve_echo(swarm.behaviour().stream.new_control()));
    tokio::spawn(perf::serve(swarm.behaviour().stream.new_control()));
    Ok(swarm)
}

/// rust-libp2p generates no RSA keys; it verifies them.
fn identity(kind: &str) -> Result<Keypair, Failure> {
    match kind {
        "ed25519" => Ok(Keypair::generate_ed25519()),
        "ecdsa" => Ok(Keypair::generate_ecdsa()),
        "secp256k1" => Ok(Keypair::generate_secp256k1()),
        other => Err(format!("cannot generate a key of type {other:?}").into()),
    }
}

/// As shipped, or without limits: zero bytes means unlimited, the duration cannot exceed what its field holds. A rust
/// relay always announces a limit, so peers take its circuits for limited ones either way.
fn relay_config(no_limits: bool) -> relay::Config {
    if !no_limits {
        return relay::Config::default();
    }
    relay::Config {
        max_reservations: usize::MAX,
        max_reservations_per_peer: usize::MAX,
        reservation_duration: Duration::from_secs(3600),
        reservation_rate_limiters: Vec::new(),
        max_circuits: usize::MAX,
        max_circuits_per_peer: usize::MAX,
        max_circuit_duration: Duration::from_secs(u32::MAX.into()),
        max_circuit_bytes: 0,
        circuit_src_rate_limiters: Vec::new(),
    }
}

async fn serve_echo(mut control: stream::Control) {
    let Ok(mut incoming) = control.accept(ECHO) else {
        return;
    };
    while let Some((_, stream)) = incoming.next().await {
        tokio::spawn(async move {
            let (reader, mut writer) = futures::AsyncReadExt::split(stream);
            if futures::io::copy(reader, &mut writer).await.is_ok() {
                let _ = writer.close().await;
            }
        });
    }
}

pub fn is_circuit(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| part == Protocol::P2pCircuit)
}

/// The part of a circuit address before /p2p-circuit.
pub fn relay_of(addr: &Multiaddr) -> Multiaddr {
    addr.iter().take_while(|part| *part != Protocol::P2pCircuit).collect()
}
