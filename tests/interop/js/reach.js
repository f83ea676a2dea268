// What one server finds out about one address of ours by AutoNAT v2. js-libp2p asks on its own when it has met a
// server; of a single server's word it tells nobody, so this looks where it keeps it.

import { setTimeout } from 'node:timers/promises'
import { multiaddr } from '@multiformats/multiaddr'

const POLL = 50 // ms

// Where we listen, on an address that is not loopback.
function listening (libp2p) {
  return libp2p.components.transportManager.getAddrs().find((addr) => !addr.toString().startsWith('/ip4/127.'))
}

function socketOf (addr) {
  const [, , host, , port] = addr.toString().split('/')
  return [host, Number(port)]
}

// The verdict on `external`, an address that a router is taken to forward to us, or else on where we listen.
export async function verdict (libp2p, server, external, signal) {
  const { addressManager } = libp2p.components
  const own = listening(libp2p)
  const addr = external == null ? own : multiaddr(external)
  if (!addr.equals(own)) {
    addressManager.addPublicAddressMapping(...socketOf(own), ...socketOf(addr), 'tcp')
  }
  await libp2p.dial(server, { signal })
  while (true) {
    if (addressManager.getAddressesWithMetadata().some((known) => known.verified && known.multiaddr.equals(addr))) {
      return { addr: addr.toString(), verdict: 'public', reason: '' }
    }
    if (libp2p.services.autoNAT.client.dialResults.get(addr.toString())?.failure > 0) {
      return { addr: addr.toString(), verdict: 'private', reason: 'the server could not dial' }
    }
    await setTimeout(POLL, undefined, { signal })
  }
}
