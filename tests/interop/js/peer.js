// A js-libp2p peer for flare's interoperability tests: relay, listener, pinger and echo client behind one command line
// that the go, rust and js peers share. Events are JSON lines on stdout. There is no --punch: js-libp2p cannot dial
// from the port that it listens on, as Node has no SO_REUSEPORT for outgoing sockets.

import { fstatSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { autoNATv2 } from '@libp2p/autonat-v2'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { generateKeyPair } from '@libp2p/crypto/keys'
import { identify, identifyPush } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { tls } from '@libp2p/tls'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { echo, pong, serveEcho } from './protocols.js'
import { verdict } from './reach.js'

const USAGE = `usage:
  peer.js relay  [--listen ADDR]... [--limits | --no-limits] [--autonat]
  peer.js listen [--listen ADDR]... [--relay ADDR]... [--autonat]
  peer.js ping ADDR [--count N] [--echo N[,N]...] [--relay ADDR]... [--timeout S]
  peer.js echo ADDR [--bytes N] [--relay ADDR]... [--timeout S]
  peer.js reach ADDR [--version 2] [--external ADDR] [--listen ADDR]... [--timeout S]
common: [--security tls|noise] [--key ed25519|secp256k1|rsa] (js-libp2p makes no peer id of an ECDSA key)`

const UNLIMITED = 1_000_000

function emit (event, fields = {}) {
  process.stdout.write(JSON.stringify({ event, ...fields }) + '\n')
}

function options () {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      listen: { type: 'string', multiple: true, default: [] },
      relay: { type: 'string', multiple: true, default: [] },
      limits: { type: 'boolean', default: false },
      'no-limits': { type: 'boolean', default: false },
      count: { type: 'string', default: '1' },
      echo: { type: 'string' },
      bytes: { type: 'string', default: '65536' },
      timeout: { type: 'string', default: '30' },
      key: { type: 'string', default: 'ed25519' },
      autonat: { type: 'boolean', default: false },
      external: { type: 'string' },
      version: { type: 'string', default: '2' },
      security: { type: 'string' }
    }
  })
  const [command, target] = positionals
  return { ...values, command, target }
}

// Ends on SIGINT, SIGTERM, or when stdin does if it is a pipe or a socket: a test harness that dies takes its peers
// along, and a peer started with /dev/null or a terminal for stdin stays.
function toldToStop () {
  return new Promise((resolve) => {
    process.once('SIGINT', resolve)
    process.once('SIGTERM', resolve)
    const stdin = fstatSync(0)
    if (stdin.isFIFO() || stdin.isSocket()) {
      process.stdin.on('end', resolve).on('error', resolve).resume()
    }
  })
}

async function privateKey (kind) {
  const names = { ed25519: 'Ed25519', secp256k1: 'secp256k1', rsa: 'RSA' }
  if (names[kind] == null) {
    throw new Error(`unknown key type ${kind}`)
  }
  return kind === 'rsa' ? generateKeyPair('RSA', 2048) : generateKeyPair(names[kind])
}

function encrypters (security) {
  const known = { tls: tls(), noise: noise() }
  if (security != null && known[security] == null) {
    throw new Error(`unknown security ${security}`)
  }
  return security == null ? [known.tls, known.noise] : [known[security]]
}

// A node that speaks TCP, TLS or Noise, and yamux, and dials nobody on its own but the relays that it reserves on.
async function node (options) {
  const services = { identify: identify(), identifyPush: identifyPush(), ping: ping() }
  const unlimited = options['no-limits']
  if (options.autonat || options.command === 'reach') {
    services.autoNAT = autoNATv2() // client and server in one
  }
  if (options.command === 'relay') {
    services.relay = circuitRelayServer({
      hopTimeout: 30_000,
      reservations: unlimited ? { applyDefaultLimit: false, maxReservations: UNLIMITED } : {},
      ...(unlimited
        ? { maxInboundHopStreams: UNLIMITED, maxOutboundHopStreams: UNLIMITED, maxOutboundStopStreams: UNLIMITED }
        : {})
    })
  }
  const started = await createLibp2p({
    privateKey: await privateKey(options.key),
    addresses: { listen: [...options.listen, ...options.relay.map((relay) => `${relay}/p2p-circuit`)] },
    transports: [tcp(), circuitRelayTransport()],
    connectionEncrypters: encrypters(options.security),
    streamMuxers: [yamux()],
    connectionGater: { denyDialMultiaddr: () => false }, // loopback and private addresses too
    services,
    ...(unlimited
      ? {
          connectionManager: {
            maxConnections: UNLIMITED, maxIncomingPendingConnections: UNLIMITED, inboundConnectionThreshold: UNLIMITED
          }
        }
      : {}),
    nodeInfo: { userAgent: 'interop-js' }
  })
  await serveEcho(started)
  return started
}

function addresses (libp2p) {
  return libp2p.getMultiaddrs().map(String)
}

async function serve (options, stopped) {
  if (options.listen.length === 0) {
    options.listen = ['/ip4/127.0.0.1/tcp/0']
  }
  const libp2p = await node(options)
  // with AutoNAT, getMultiaddrs has a public address only when others have verified it
  const addrs = libp2p.components.transportManager.getAddrs().map((addr) => `${addr}/p2p/${libp2p.peerId}`)
  emit('listening', {
    peer: libp2p.peerId.toString(),
    addrs: addrs.filter((addr) => !addr.includes('/p2p-circuit'))
  })
  for (const relay of options.relay) {
    const circuit = `${relay}/p2p-circuit`
    await reserved(libp2p, circuit, Number(options.timeout))
    emit('reserved', { relay: relay.split('/p2p/').at(-1), addrs: [`${circuit}/p2p/${libp2p.peerId}`] })
  }
  await stopped
  await libp2p.stop()
}

async function reserved (libp2p, circuit, seconds) {
  const deadline = Date.now() + seconds * 1000
  while (!addresses(libp2p).some((addr) => addr.startsWith(circuit))) {
    if (Date.now() > deadline) {
      throw new Error('no reservation within the timeout')
    }
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

// What identify tells of the target.
function toldOf (libp2p, target, signal) {
  return new Promise((resolve, reject) => {
    signal.addEventListener('abort', () => reject(new Error('identify told nothing within the timeout')))
    libp2p.addEventListener('peer:identify', ({ detail }) => {
      if (target.endsWith(`/p2p/${detail.peerId}`)) {
        resolve(detail)
      }
    })
  })
}

async function client (options) {
  const signal = AbortSignal.timeout(Number(options.timeout) * 1000)
  const libp2p = await node(options)
  // js-libp2p loses an answer that comes together with its stream's end, which on a circuit is how identify's comes
  // from rust-libp2p and from flare: there it is not waited for.
  const waits = options.command === 'ping' && !options.target.includes('/p2p-circuit')
  const identified = waits ? toldOf(libp2p, options.target, signal) : null
  const connection = await libp2p.dial(multiaddr(options.target), { signal })
  if (options.command === 'ping') {
    if (identified != null) {
      const { peerId, agentVersion, protocols } = await identified
      emit('identified', { peer: peerId.toString(), agent: agentVersion, protocols })
    }
    for (let count = Number(options.count); count > 0; count--) {
      emit('pong', await pong(connection, signal))
    }
    for (const bytes of options.echo?.split(',') ?? []) {
      emit('echoed', await echo(connection, Number(bytes), signal))
    }
    emit('done')
  } else {
    emit('echoed', await echo(connection, Number(options.bytes), signal))
  }
  await libp2p.stop()
}

// Asks the target, which dials back, where we can be reached: at --external, or where we listen.
async function reach (options) {
  if (options.version !== '2') {
    throw new Error(`js-libp2p has no AutoNAT version ${options.version}`)
  }
  const signal = AbortSignal.timeout(Number(options.timeout) * 1000)
  const libp2p = await node(options)
  emit('reach', await verdict(libp2p, multiaddr(options.target), options.external, signal))
  await libp2p.stop()
}

async function main () {
  const given = options()
  const stopped = toldToStop()
  if (given.command === 'relay' || given.command === 'listen') {
    await serve(given, stopped)
  } else if ((given.command === 'ping' || given.command === 'echo') && given.target != null) {
    await Promise.race([client(given), stopped])
  } else if (given.command === 'reach' && given.target != null) {
    await Promise.race([reach(given), stopped])
  } else {
    process.stderr.write(USAGE + '\n')
    process.exit(2)
  }
}

main().then(
  () => process.exit(0),
  (error) => {
    emit('error', { reason: `${error.name}: ${error.message}` })
    process.exit(1)
  })
