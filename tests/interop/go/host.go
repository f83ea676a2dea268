package main

import (
	"crypto/rand"
	"fmt"
	"io"
	"slices"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"
)

const echoProtocol = "/echo/1.0.0"

func newIdentity(kind string) (crypto.PrivKey, error) {
	kinds := map[string]int{
		"ed25519": crypto.Ed25519, "ecdsa": crypto.ECDSA, "secp256k1": crypto.Secp256k1, "rsa": crypto.RSA,
	}
	number, known := kinds[kind]
	if !known {
		return nil, fmt.Errorf("unknown key type %q", kind)
	}
	key, _, err := crypto.GenerateKeyPairWithReader(number, 2048, rand.Reader)
	return key, err
}

func security(name string) (libp2p.Option, error) {
	switch name {
	case "":
		return libp2p.DefaultSecurity, nil
	case "tls":
		return libp2p.Security(libp2ptls.ID, libp2ptls.New), nil
	case "noise":
		return libp2p.Security(noise.ID, noise.New), nil
	}
	return nil, fmt.Errorf("unknown security %q", name)
}

// newHost is a host that speaks QUIC, and TCP with TLS or Noise and yamux, and dials nobody on its own. With --defaults
// it is what go-libp2p makes of no options, as Kubo uses it: every transport, TLS before Noise, its resource manager.
func newHost(opts options, more ...libp2p.Option) (host.Host, error) {
	identity, err := newIdentity(opts.key)
	if err != nil {
		return nil, err
	}
	secured, err := security(opts.security)
	if err != nil {
		return nil, err
	}
	config := []libp2p.Option{
		libp2p.Identity(identity),
		libp2p.UserAgent("interop-go"),
	}
	if !opts.defaults {
		config = append(config,
			libp2p.Transport(tcp.NewTCPTransport),
			libp2p.Transport(quic.NewTransport),
			secured,
			libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
			libp2p.DisableMetrics())
	}
	if len(opts.listen) > 0 {
		config = append(config, libp2p.ListenAddrStrings(opts.listen...))
	} else {
		config = append(config, libp2p.NoListenAddrs, libp2p.EnableRelay())
	}
	if opts.punch {
		// One observer suffices here: for hole punching go-libp2p uses every address that any peer saw it at.
		config = append(config,
			libp2p.ForceReachabilityPrivate(),
			libp2p.EnableHolePunching(holepunch.WithTracer(punchTracer{})))
	}
	config = append(config, dialsBack(opts)...)
	h, err := libp2p.New(append(config, more...)...)
	if err != nil {
		return nil, err
	}
	h.SetStreamHandler(perfProtocol, servePerf)
	h.SetStreamHandler(echoProtocol, func(stream network.Stream) {
		if _, err := io.Copy(stream, stream); err != nil {
			_ = stream.Reset()
			return
		}
		_ = stream.Close()
	})
	return h, nil
}

// noResourceLimits is what a relay without limits needs besides the relay's own: no cap on connections or streams,
// and nobody who trims those that are idle to the 160 that go-libp2p keeps.
func noResourceLimits() (libp2p.Option, error) {
	manager, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits),
		rcmgr.WithLimitPerSubnet([]rcmgr.ConnLimitPerSubnet{}, []rcmgr.ConnLimitPerSubnet{}),
		rcmgr.WithConnRateLimiters(&rate.Limiter{}))
	if err != nil {
		return nil, err
	}
	return libp2p.ChainOptions(libp2p.ResourceManager(manager), libp2p.ConnectionManager(connmgr.NullConnMgr{})), nil
}

// withPeer gives the host's addresses, each ending in its /p2p.
func withPeer(h host.Host, list []multiaddr.Multiaddr) []string {
	texts := make([]string, 0, len(list))
	for _, addr := range list {
		texts = append(texts, fmt.Sprintf("%s/p2p/%s", addr, h.ID()))
	}
	return texts
}

// pathOf says how a connection runs, in flare's words.
func pathOf(conn network.Conn) string {
	if isCircuit(conn.RemoteMultiaddr()) {
		return "relayed"
	}
	if _, err := conn.RemoteMultiaddr().ValueForProtocol(multiaddr.P_QUIC_V1); err == nil {
		return "direct/quic-v1"
	}
	return "direct/tcp"
}

// pathsTo are those of all connections to a peer.
func pathsTo(h host.Host, remote peer.ID) []string {
	paths := []string{}
	for _, conn := range h.Network().ConnsToPeer(remote) {
		paths = append(paths, pathOf(conn))
	}
	slices.Sort(paths)
	return paths
}

func isCircuit(addr multiaddr.Multiaddr) bool {
	_, err := addr.ValueForProtocol(multiaddr.P_CIRCUIT)
	return err == nil
}
