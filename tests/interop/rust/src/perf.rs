//! /perf/1.0.0 in a few lines: rust-libp2p's own (libp2p-perf) is not released for the libp2p that this is built on.

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::{Stream, StreamProtocol};
use libp2p_stream::Control;

use crate::Failure;

pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/perf/1.0.0");
const CHUNK: usize = 64 * 1024;

pub async fn run(mut stream: Stream, upload: u64, download: u64) -> Result<(), Failure> {
    stream.write_all(&download.to_be_bytes()).await?;
    send(&mut stream, upload).await?;
    stream.close().await?;
    let received = drain(&mut stream).await?;
    if received != download {
        return Err(format!("perf: {received} bytes came, not {download}").into());
    }
    Ok(())
}

pub async fn serve(mut control: Control) {
    let Ok(mut incoming) = control.accept(PROTOCOL) else {
        return;
    };
    while let Some((_, stream)) = incoming.next().await {
        tokio::spawn(answer(stream));
    }
}

async fn answer(mut stream: Stream) -> Result<(), Failure> {
    let mut wanted = [0; 8];
    stream.read_exact(&mut wanted).await?;
    drain(&mut stream).await?;
    send(&mut stream, u64::from_be_bytes(wanted)).await?;
    Ok(stream.close().await?)
}

async fn send(stream: &mut Stream, mut left: u64) -> Result<(), Failure> {
    let zeros = vec![0; CHUNK];
    while left > 0 {
        let piece = left.min(CHUNK as u64) as usize;
        stream.write_all(&zeros[..piece]).await?;
        left -= piece as u64;
    }
    Ok(())
}

async fn drain(stream: &mut Stream) -> Result<u64, Failure> {
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(received),
            read => received += read as u64,
        }
    }
}
