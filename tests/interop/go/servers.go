package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/multiformats/go-multiaddr"
)

// punchTracer shows what go-libp2p's hole punching does.
type punchTracer struct{}

func (punchTracer) Trace(traced *holepunch.Event) {
	emit("punch", map[string]any{"peer": traced.Remote.String(), "type": traced.Type, "detail": traced.Evt})
}

// runRelay serves circuit relay v2 until the context ends.
func runRelay(ctx context.Context, opts options) error {
	if len(opts.listen) == 0 {
		opts.listen = addrs{"/ip4/127.0.0.1/tcp/0"}
	}
	var config []libp2p.Option
	resources := relay.DefaultResources()
	if opts.noLimits {
		unlimited, err := noResourceLimits()
		if err != nil {
			return err
		}
		config = append(config, unlimited)
		resources.Limit = nil
		resources.MaxReservations = math.MaxInt32
		resources.MaxCircuits = math.MaxInt32
		resources.MaxReservationsPerIP = math.MaxInt32
		resources.MaxReservationsPerASN = math.MaxInt32
	}
	if opts.buffer > 0 {
		resources.BufferSize = opts.buffer
	}
	h, err := newHost(opts, config...)
	if err != nil {
		return err
	}
	defer h.Close()
	anyAddr := func(multiaddr.Multiaddr) bool { return true }
	service, err := relay.New(h, relay.WithResources(resources), relay.WithReservationAddressFilter(anyAddr))
	if err != nil {
		return err
	}
	defer service.Close()
	emitListening(h)
	<-ctx.Done()
	return nil
}

// runListen serves ping, identify and echo until the context ends, directly and through the relays it reserves on.
func runListen(ctx context.Context, opts options) error {
	if len(opts.listen) == 0 {
		opts.listen = addrs{"/ip4/127.0.0.1/tcp/0"}
	}
	h, err := newHost(opts)
	if err != nil {
		return err
	}
	defer h.Close()
	emitListening(h)
	emitConnections(h)
	if err := reserve(ctx, h, opts); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// emitConnections prints the paths to a peer whenever a connection comes or goes.
func emitConnections(h host.Host) {
	tell := func(_ network.Network, conn network.Conn) {
		remote := conn.RemotePeer()
		emit("connections", map[string]any{"peer": remote.String(), "paths": pathsTo(h, remote)})
	}
	h.Network().Notify(&network.NotifyBundle{ConnectedF: tell, DisconnectedF: tell})
}

func emitListening(h host.Host) {
	bound, err := h.Network().InterfaceListenAddresses()
	if err != nil {
		bound = h.Network().ListenAddresses()
	}
	bound = slices.DeleteFunc(bound, isCircuit) // go-libp2p lists /p2p-circuit among them
	emit("listening", map[string]any{"peer": h.ID().String(), "addrs": withPeer(h, bound)})
}

// reserve takes a slot on every relay and prints each. AutoRelay would do the same but never counts a loopback relay.
func reserve(ctx context.Context, h host.Host, opts options) error {
	ctx, cancel := context.WithTimeout(ctx, opts.timeout)
	defer cancel()
	for _, text := range opts.relays {
		info, err := peer.AddrInfoFromString(text)
		if err != nil {
			return fmt.Errorf("--relay %s: %w", text, err)
		}
		if err := h.Connect(ctx, *info); err != nil {
			return err
		}
		if opts.punch {
			// Only from then on does go-libp2p punch when an inbound relayed connection comes.
			if err := waitPunchReady(ctx, h); err != nil {
				return err
			}
		}
		reservation, err := client.Reserve(ctx, h, *info)
		if err != nil {
			return err
		}
		h.ConnManager().Protect(info.ID, "reservation")
		circuit := fmt.Sprintf("%s/p2p-circuit/p2p/%s", text, h.ID())
		emit("reserved", map[string]any{
			"relay": info.ID.String(), "addrs": []string{circuit}, "voucher": reservation.Voucher != nil,
			"limited": reservation.LimitData != 0 || reservation.LimitDuration != 0,
		})
	}
	return nil
}

// waitPunchReady waits until the host knows a public address of its own: before, go-libp2p does not serve DCUtR.
func waitPunchReady(ctx context.Context, h host.Host) error {
	for {
		if slices.Contains(h.Mux().Protocols(), holepunch.Protocol) {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return errors.New("no peer told us a public address, so go-libp2p does not punch")
		}
	}
}
