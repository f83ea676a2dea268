//! The command line, the same for every command; each command reads the options it knows.

use std::{str::FromStr, time::Duration};

use libp2p::Multiaddr;

pub const USAGE: &str = "usage:
  interop-rust relay  [--listen ADDR]... [--limits | --no-limits]
  interop-rust listen [--listen ADDR]... [--relay ADDR]... [--punch]
  interop-rust ping ADDR [--count N] [--punch] [--listen ADDR]... [--relay ADDR]... [--timeout S]
  interop-rust echo ADDR [--bytes N] [--streams N] [--listen ADDR]... [--relay ADDR]... [--timeout S]
common: [--key ed25519|ecdsa|secp256k1] [--security tls|noise]";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Relay,
    Listen,
    Ping,
    Echo,
}

pub struct Options {
    pub command: Command,
    pub target: Option<Multiaddr>,
    pub listen: Vec<Multiaddr>,
    pub relays: Vec<Multiaddr>,
    pub no_limits: bool,
    pub punch: bool,
    pub count: usize,
    pub bytes: usize,
    pub streams: usize,
    pub timeout: Duration,
    pub key: String,
    pub security: String,
}

impl Options {
    pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let command = match args.next().as_deref() {
            Some("relay") => Command::Relay,
            Some("listen") => Command::Listen,
            Some("ping") => Command::Ping,
            Some("echo") => Command::Echo,
            other => return Err(format!("unknown command {other:?}")),
        };
        let mut options = Options {
            command,
            target: None,
            listen: Vec::new(),
            relays: Vec::new(),
            no_limits: false,
            punch: false,
            count: 1,
            bytes: 65536,
            streams: 1,
            timeout: Duration::from_secs(30),
            key: "ed25519".to_owned(),
            security: String::new(),
        };
        if matches!(command, Command::Ping | Command::Echo) {
            options.target = Some(value("ADDR", args.next())?);
        }
        while let Some(flag) = args.next() {
            match flag.as_str() {
                "--listen" => options.listen.push(value(&flag, args.next())?),
                "--relay" => options.relays.push(value(&flag, args.next())?),
                "--no-limits" => options.no_limits = true,
                "--limits" => options.no_limits = false,
                "--punch" => options.punch = true,
                "--count" => options.count = value(&flag, args.next())?,
                "--bytes" => options.bytes = value(&flag, args.next())?,
                "--streams" => options.streams = value(&flag, args.next())?,
                "--timeout" => {
                    options.timeout = Duration::try_from_secs_f64(value(&flag, args.next())?)
                        .map_err(|error| format!("--timeout: {error}"))?;
                }
                "--key" => options.key = value(&flag, args.next())?,
                "--security" => options.security = value(&flag, args.next())?,
                other => return Err(format!("unexpected argument {other:?}")),
            }
        }
        Ok(options)
    }
}

fn value<T: FromStr<Err: std::fmt::Display>>(name: &str, text: Option<String>) -> Result<T, String> {
    let text = text.ok_or_else(|| format!("{name}: missing"))?;
    text.parse().map_err(|error| format!("{name}: {error}"))
}
