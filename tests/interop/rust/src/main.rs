//! A rust-libp2p peer for flare's interoperability tests: relay, listener, pinger and echo client behind one command
//! line that the go, rust and js peers share. Events are JSON lines on stdout.

mod clients;
mod connections;
mod options;
mod perf;
mod reach;
mod servers;
mod swarm;

use std::{error::Error, io::Read, os::unix::fs::FileTypeExt, process::ExitCode};

use options::{Command, Options};
use serde_json::{Value, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

pub type Failure = Box<dyn Error + Send + Sync>;

/// Prints one JSON line; the fields are an object's.
pub fn emit(event: &str, fields: Value) {
    let mut line = json!({ "event": event });
    if let (Value::Object(line), Value::Object(fields)) = (&mut line, fields) {
        line.extend(fields);
    }
    println!("{line}");
}

/// Resolves on SIGINT, SIGTERM, or when stdin ends if it is a pipe or a socket: a test harness that dies takes its
/// peers along, and a peer started with /dev/null or a terminal for stdin stays.
async fn told_to_stop() -> Result<(), Failure> {
    let (ended, stdin_ended) = oneshot::channel();
    let kind = std::fs::metadata("/dev/stdin").map(|stdin| stdin.file_type());
    if kind.is_ok_and(|kind| kind.is_fifo() || kind.is_socket()) {
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while std::io::stdin().read(&mut buffer).is_ok_and(|n| n > 0) {}
            let _ = ended.send(());
        });
    } else {
        std::mem::forget(ended);
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = stdin_ended => {}
    }
    Ok(())
}

async fn run(options: Options) -> Result<(), Failure> {
    let stop = told_to_stop();
    let timeout = options.timeout;
    match options.command {
        Command::Relay => servers::relay(&options, stop).await,
        Command::Listen => servers::listen(&options, stop).await,
        Command::Ping => tokio::select! {
            done = clients::ping(&options) => done,
            stopped = stop => stopped,
            _ = tokio::time::sleep(timeout) => clients::timed_out(&options),
        },
        Command::Echo => tokio::select! {
            done = clients::echo(&options) => done,
            stopped = stop => stopped,
            _ = tokio::time::sleep(timeout) => clients::timed_out(&options),
        },
        Command::Perf => tokio::select! {
            done = clients::perf(&options) => done,
            stopped = stop => stopped,
            _ = tokio::time::sleep(timeout) => clients::timed_out(&options),
        },
        Command::Reach => tokio::select! {
            done = reach::reach(&options) => done,
            stopped = stop => stopped,
            _ = tokio::time::sleep(timeout) => clients::timed_out(&options),
        },
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(reason) => {
            eprintln!("{reason}\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            emit("error", json!({ "reason": failure.to_string() }));
            ExitCode::FAILURE
        }
    }
}
