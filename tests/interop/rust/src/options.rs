//! The command line, the same for every command; each command reads the options it knows.

use std::{str::FromStr, time::Duration};

use libp2p::Multiaddr;

pub const USAGE: &str = "usage:
  interop-rust relay  [--listen ADDR]... [--limits | --no-limits] [--autonat]
  interop-rust listen [--listen ADDR]... [--relay ADDR]... [--punch] [--autonat]
  interop-rust ping ADDR [--count N] [--echo N[,N]...] [--punch] [--settle S] [--listen ADDR]... [--relay ADDR]...
                    [--timeout S]
  interop-rust echo ADDR [--bytes N] [--streams N] [--listen ADDR]... [--relay ADDR]... [--timeout S]
  interop-rust perf ADDR [--upload N] [--download N] [--listen ADDR]... [--relay ADDR]... [--timeout S]
  interop-rust reach ADDR [--version 1|2] [--external ADDR]... [--listen ADDR]... [--timeout S]
common: [--key ed25519|ecdsa|secp256k1] [--security tls|noise]";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Relay,
    Listen,
    Ping,
    Echo,
    Perf,
    Reach,
}

pub struct Options {
    pub command: Command,
    pub target: Option<Multiaddr>,
    pub listen: Vec<Multiaddr>,
    pub relays: Vec<Multiaddr>,
    pub no_limits: bool,
    pub punch: bool,
    pub count: usize,
    /// Bytes to echo after the pings, each in its turn.
    pub echoes: Vec<usize>,
    pub bytes: usize,
    pub streams: usize,
    pub upload: u64,
    pub download: u64,
    pub settle: Duration,
    pub timeout: Duration,
    pub key: String,
    pub security: String,
    /// Dial others back, AutoNAT v1 and v2.
    pub autonat: bool,
    /// Of AutoNAT, to ask with.
    pub version: u8,
    /// What to ask about, besides where others see us.
    pub external: Vec<Multiaddr>,
}

impl Options {
    pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let command = match args.next().as_deref() {
            Some("relay") => Command::Relay,
            Some("listen") => Command::Listen,
            Some("ping") => Command::Ping,
            Some("echo") => Command::Echo,
            Some("perf") => Command::Perf,
            Some("reach") => Command::Reach,
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
            echoes: Vec::new(),
            bytes: 65536,
            streams: 1,
            upload: 1 << 20,
            download: 1 << 20,
            settle: Duration::ZERO,
            timeout: Duration::from_secs(30),
            key: "ed25519".to_owned(),
            security: String::new(),
            autonat: false,
            version: 2,
            external: Vec::new(),
        };
        if matches!(command, Command::Ping | Command::Echo | Command::Perf | Command::Reach) {
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
                "--echo" => {
                    for size in value::<String>(&flag, args.next())?.split(',') {
                        options.echoes.push(value(&flag, Some(size.to_owned()))?);
                    }
                }
                "--bytes" => options.bytes = value(&flag, args.next())?,
                "--streams" => options.streams = value(&flag, args.next())?,
                "--upload" => options.upload = value(&flag, args.next())?,
                "--download" => options.download = value(&flag, args.next())?,
                "--timeout" => options.timeout = seconds(&flag, args.next())?,
                "--settle" => options.settle = seconds(&flag, args.next())?,
                "--key" => options.key = value(&flag, args.next())?,
                "--security" => options.security = value(&flag, args.next())?,
                "--autonat" => options.autonat = true,
                "--version" => options.version = value(&flag, args.next())?,
                "--external" => options.external.push(value(&flag, args.next())?),
                other => return Err(format!("unexpected argument {other:?}")),
            }
        }
        Ok(options)
    }
}

fn seconds(name: &str, text: Option<String>) -> Result<Duration, String> {
    Duration::try_from_secs_f64(value(name, text)?).map_err(|error| format!("{name}: {error}"))
}

fn value<T: FromStr<Err: std::fmt::Display>>(name: &str, text: Option<String>) -> Result<T, String> {
    let text = text.ok_or_else(|| format!("{name}: missing"))?;
    text.parse().map_err(|error| format!("{name}: {error}"))
}
