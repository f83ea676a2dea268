//! The pinger and the echo client: they dial, do their work, and end.

use std::time::{Duration, Instant};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::{Multiaddr, PeerId, Stream, Swarm, identify, multiaddr::Protocol, ping, swarm::SwarmEvent};
use libp2p_stream::Control;
use serde_json::json;

use crate::{
    Failure,
    connections::{Connections, path_of},
    emit,
    options::Options,
    perf,
    servers::{bind, report_punch},
    swarm::{Behaviour, BehaviourEvent, ECHO, build, is_circuit, relay_of},
};

/// Pings the target on every connection there is, and echoes if told to; with --punch it waits for a pong over a direct
/// one.
pub async fn ping(options: &Options) -> Result<(), Failure> {
    let (mut swarm, target) = prepare(options).await?;
    swarm.dial(target.clone())?;
    let remote = peer_of(&target)?;
    let mut connections = Connections::default();
    let mut left = options.count;
    let mut identified = false;
    let mut start = Instant::now();
    loop {
        let event = swarm.select_next_some().await;
        report_punch(&event);
        connections.on_event(&event);
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, num_established, .. }
                if peer_id == remote && num_established.get() == 1 =>
            {
                start = Instant::now();
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) if peer_id == remote && !identified => {
                identified = true;
                let protocols: Vec<String> = info.protocols.iter().map(ToString::to_string).collect();
                let peer = remote.to_string();
                emit(
                    "identified",
                    json!({ "peer": peer, "agent": info.agent_version, "protocols": protocols }),
                );
            }
            SwarmEvent::OutgoingConnectionError { error, .. } if connections.to(&remote).is_empty() => {
                return Err(error.into());
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, cause, .. } if peer_id == remote => {
                return Err(format!("connection lost: {cause:?}").into());
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event { peer, connection, result }))
                if peer == remote =>
            {
                let path = connections.path(&remote, connection);
                let round_trip = result?;
                if left > 0 || (options.punch && path != "relayed") {
                    emit("pong", json!({ "rtt_ms": round_trip.as_secs_f64() * 1e3, "path": path }));
                }
                left = left.saturating_sub(1);
                if left > 0 || !identified || (options.punch && path == "relayed") {
                    continue;
                }
                for &bytes in &options.echoes {
                    let mut control = swarm.behaviour().stream.new_control();
                    let work = async { exchange(control.open_stream(remote, ECHO).await?, bytes).await };
                    let start = Instant::now();
                    drive(&mut swarm, work).await?;
                    let seconds = start.elapsed().as_secs_f64();
                    emit("echoed", json!({ "bytes": bytes, "streams": 1, "seconds": seconds, "path": path }));
                }
                if options.punch {
                    let seconds = start.elapsed().as_secs_f64();
                    connections.settle(&mut swarm, options.settle).await;
                    let settled = connections.to(&remote);
                    emit("direct", json!({ "path": path, "seconds": seconds, "connections": settled }));
                }
                emit("done", json!({}));
                return Ok(());
            }
            _ => {}
        }
    }
}

/// Sends random bytes through the target's echo, whatever the path, and compares what comes back.
pub async fn echo(options: &Options) -> Result<(), Failure> {
    let (bytes, streams) = (options.bytes, options.streams);
    let (seconds, path) = over_streams(options, async move |control, remote| {
        futures::future::try_join_all((0..streams).map(|_| {
            let mut control = control.clone();
            async move { exchange(control.open_stream(remote, ECHO).await?, bytes).await }
        }))
        .await?;
        Ok(())
    })
    .await?;
    emit("echoed", json!({ "bytes": bytes, "streams": streams, "seconds": seconds, "path": path }));
    Ok(())
}

/// Sends so many bytes and asks for so many, as perf.md says.
pub async fn perf(options: &Options) -> Result<(), Failure> {
    let (upload, download) = (options.upload, options.download);
    let (seconds, path) = over_streams(options, async move |mut control, remote| {
        perf::run(control.open_stream(remote, perf::PROTOCOL).await?, upload, download).await
    })
    .await?;
    emit("perf", json!({ "upload": upload, "download": download, "seconds": seconds, "path": path }));
    Ok(())
}

/// Connects to the target and does `work` there; its seconds, and the path.
async fn over_streams(
    options: &Options,
    work: impl AsyncFnOnce(Control, PeerId) -> Result<(), Failure>,
) -> Result<(f64, &'static str), Failure> {
    let (mut swarm, target) = prepare(options).await?;
    swarm.dial(target.clone())?;
    let remote = peer_of(&target)?;
    let path = loop {
        match swarm.select_next_some().await {
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } if peer_id == remote => {
                break path_of(endpoint.get_remote_address());
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
            _ => {}
        }
    };
    let start = Instant::now();
    let working = work(swarm.behaviour().stream.new_control(), remote);
    drive(&mut swarm, working).await?;
    Ok((start.elapsed().as_secs_f64(), path))
}

/// Does `work` while the swarm goes on.
async fn drive(
    swarm: &mut Swarm<Behaviour>,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            _ = swarm.select_next_some() => {}
            done = &mut work => return done,
        }
    }
}

async fn exchange(stream: Stream, bytes: usize) -> Result<(), Failure> {
    let sent = noise_of(bytes);
    let (mut reader, mut writer) = stream.split();
    let mut received = Vec::with_capacity(bytes);
    futures::try_join!(
        async {
            writer.write_all(&sent).await?;
            writer.close().await
        },
        reader.read_to_end(&mut received),
    )?;
    if sent != received {
        return Err(format!("echo: {bytes} bytes sent, {} other bytes received", received.len()).into());
    }
    Ok(())
}

/// Bytes that no compression or mix-up keeps (xorshift, seeded by the clock).
fn noise_of(bytes: usize) -> Vec<u8> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let mut state = now.map_or(1, |now| now.as_nanos() as u64) | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

pub fn timed_out(options: &Options) -> Result<(), Failure> {
    let reason = format!("not done within {} s", options.timeout.as_secs_f64());
    if options.punch {
        emit("relayed", json!({ "reason": reason.as_str() }));
    }
    Err(reason.into())
}

pub fn peer_of(addr: &Multiaddr) -> Result<PeerId, Failure> {
    match addr.iter().last() {
        Some(Protocol::P2p(id)) => Ok(id),
        _ => Err(format!("{addr} does not end in /p2p/PEER").into()),
    }
}

/// A swarm that listens where asked to and, to punch, has heard from the relay where it is seen.
pub async fn prepare(options: &Options) -> Result<(Swarm<Behaviour>, Multiaddr), Failure> {
    let target = options.target.clone().ok_or("no target")?;
    let mut swarm = build(options)?;
    if options.punch && options.listen.is_empty() {
        swarm.listen_on("/ip4/0.0.0.0/tcp/0".parse()?)?; // to punch is to dial from the port that one listens on
        while let Ok(_event) = tokio::time::timeout(Duration::from_millis(50), swarm.select_next_some()).await
        {
        }
    } else if !options.listen.is_empty() {
        bind(&mut swarm, options).await?;
    }
    for relay in &options.relays {
        swarm.listen_on(relay.clone().with(Protocol::P2pCircuit))?;
    }
    if options.punch && is_circuit(&target) {
        let relay = relay_of(&target);
        let relay_peer = peer_of(&relay)?;
        swarm.dial(relay)?;
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                    peer_id,
                    ..
                })) if peer_id == relay_peer => {
                    break;
                }
                SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
                _ => {}
            }
        }
    }
    Ok((swarm, target))
}
