package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/autonat"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// dialsBack makes a host serve both versions of AutoNAT, as one does that knows itself public.
func dialsBack(opts options) []libp2p.Option {
	if !opts.autonat {
		return nil
	}
	return []libp2p.Option{
		libp2p.EnableNATService(), libp2p.EnableAutoNATv2(), libp2p.ForceReachabilityPublic(),
		// A new go-libp2p refuses to dial back over UDP or IPv6 until it has dialled so itself with success; one that
		// has run for long does not.
		libp2p.UDPBlackHoleSuccessCounter(nil), libp2p.IPv6BlackHoleSuccessCounter(nil),
	}
}

// runReach asks the target, which dials back, where we can be reached: at --external, or where we listen.
func runReach(ctx context.Context, target string, opts options) error {
	ctx, cancel := context.WithTimeout(ctx, opts.timeout)
	defer cancel()
	ask := reachV1
	if opts.version == 2 {
		ask = reachV2
	} else if opts.version != 1 {
		return fmt.Errorf("there is no AutoNAT version %d", opts.version)
	}
	info, err := peer.AddrInfoFromString(target)
	if err != nil {
		return err
	}
	h, err := newHost(opts)
	if err != nil {
		return err
	}
	defer h.Close()
	var candidates []multiaddr.Multiaddr
	for _, text := range opts.external {
		addr, err := multiaddr.NewMultiaddr(text)
		if err != nil {
			return fmt.Errorf("--external %s: %w", text, err)
		}
		candidates = append(candidates, addr)
	}
	if len(candidates) == 0 {
		candidates = multiaddr.FilterAddrs(h.Addrs(), manet.IsPublicAddr)
	}
	if len(candidates) == 0 {
		return errors.New("no public address to ask about")
	}
	return ask(ctx, h, *info, candidates)
}

// reachV1 asks once; go-libp2p itself would ask three more servers before it is sure.
func reachV1(ctx context.Context, h host.Host, server peer.AddrInfo, candidates []multiaddr.Multiaddr) error {
	if err := h.Connect(ctx, server); err != nil {
		return err
	}
	client := autonat.NewAutoNATClient(h, func() []multiaddr.Multiaddr { return candidates }, nil)
	err := client.DialBack(ctx, server.ID)
	switch {
	case err == nil:
		emitReach(candidates[0], network.ReachabilityPublic, "")
	case autonat.IsDialError(err):
		emitReach(candidates[0], network.ReachabilityPrivate, err.Error())
	default:
		emitReach(candidates[0], network.ReachabilityUnknown, err.Error())
	}
	return nil
}

// reachV2 asks about all candidates in one request; the server chooses one of them.
func reachV2(ctx context.Context, h host.Host, server peer.AddrInfo, candidates []multiaddr.Multiaddr) error {
	dialer, err := newHost(options{key: "ed25519"}) // of the server that belongs to every client
	if err != nil {
		return err
	}
	nat, err := autonatv2.New(dialer)
	if err != nil {
		return err
	}
	if err := nat.Start(h); err != nil {
		return err
	}
	defer nat.Close()
	if err := h.Connect(ctx, server); err != nil {
		return err
	}
	requests := make([]autonatv2.Request, 0, len(candidates))
	for _, addr := range candidates {
		requests = append(requests, autonatv2.Request{Addr: addr, SendDialData: true})
	}
	for {
		result, err := nat.GetReachability(ctx, requests)
		switch {
		case errors.Is(err, autonatv2.ErrNoPeers): // it has not yet heard what identify said
			select {
			case <-time.After(20 * time.Millisecond):
				continue
			case <-ctx.Done():
				return errors.New("the target does not speak AutoNAT v2")
			}
		case err != nil:
			emitReach(candidates[0], network.ReachabilityUnknown, err.Error())
		case result.AllAddrsRefused:
			emitReach(candidates[0], network.ReachabilityUnknown, "refused")
		default:
			emitReach(result.Addr, result.Reachability, "")
		}
		return nil
	}
}

func emitReach(addr multiaddr.Multiaddr, verdict network.Reachability, reason string) {
	emit("reach", map[string]any{
		"addr": addr.String(), "verdict": strings.ToLower(verdict.String()), "reason": reason,
	})
}
