// Ping and echo over a connection that is given, whatever its path.

import { randomBytes } from 'node:crypto'

export const ECHO = '/echo/1.0.0'
const PING = '/ipfs/ping/1.0.0'
const PING_BYTES = 32

// Sends what a stream can take, in pieces, waiting for its buffer to drain.
async function sendAll (stream, data, signal) {
  const piece = 16_384
  for (let sent = 0; sent < data.byteLength; sent += piece) {
    if (!stream.send(data.subarray(sent, sent + piece))) {
      await stream.onDrain({ signal })
    }
  }
}

async function readAll (stream) {
  const chunks = []
  for await (const chunk of stream) {
    chunks.push(chunk.subarray())
  }
  return Buffer.concat(chunks)
}

export async function serveEcho (libp2p) {
  await libp2p.handle(ECHO, async (stream) => {
    try {
      for await (const chunk of stream) {
        if (!stream.send(chunk)) {
          await stream.onDrain()
        }
      }
      await stream.close()
    } catch (error) {
      stream.abort(error)
    }
  }, { runOnLimitedConnection: true })
}

function pathOf (connection) {
  return connection.remoteAddr.toString().includes('/p2p-circuit') ? 'relayed' : 'direct/tcp'
}

export async function echo (connection, bytes, signal) {
  const stream = await connection.newStream(ECHO, { signal, runOnLimitedConnection: true })
  signal.addEventListener('abort', () => stream.abort(new Error('not echoed within the timeout')))
  const sent = randomBytes(bytes)
  const start = performance.now()
  const reading = readAll(stream)
  await sendAll(stream, sent, signal)
  await stream.close({ signal })
  const received = await reading
  if (!sent.equals(received)) {
    throw new Error(`echo: ${sent.byteLength} bytes sent, ${received.byteLength} other bytes received`)
  }
  return { bytes, seconds: (performance.now() - start) / 1000, path: pathOf(connection) }
}

export async function pong (connection, signal) {
  const stream = await connection.newStream(PING, { signal, runOnLimitedConnection: true })
  signal.addEventListener('abort', () => stream.abort(new Error('no pong within the timeout')))
  const sent = randomBytes(PING_BYTES)
  const start = performance.now()
  stream.send(sent)
  let received = Buffer.alloc(0)
  let elapsed
  for await (const chunk of stream) { // to its end: until then js-libp2p allows no second ping stream
    received = Buffer.concat([received, chunk.subarray()])
    if (elapsed == null && received.byteLength >= PING_BYTES) {
      elapsed = performance.now() - start
      await stream.close({ signal })
    }
  }
  if (!sent.equals(received)) {
    throw new Error('the pong is not the ping\'s')
  }
  return { rtt_ms: elapsed, path: pathOf(connection) }
}
