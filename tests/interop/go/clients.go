package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/multiformats/go-multiaddr"
)

// runPing pings the target over the best connection there is, and echoes if told to; with --punch it then waits for a
// direct one.
func runPing(ctx context.Context, target string, opts options) error {
	ctx, cancel := context.WithTimeout(ctx, opts.timeout)
	defer cancel()
	h, remote, err := dial(ctx, target, opts)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := emitIdentified(h, remote); err != nil {
		return err
	}
	start := time.Now()
	for range opts.count {
		if err := pong(ctx, h, remote); err != nil {
			return err
		}
	}
	for _, size := range opts.echoes {
		if err := echo(ctx, h, remote, size, 1); err != nil {
			return err
		}
	}
	if opts.punch {
		if err := waitDirect(ctx, h, remote); err != nil {
			emit("relayed", map[string]any{"reason": err.Error()})
			return err
		}
		seconds := time.Since(start).Seconds()
		if err := pong(ctx, h, remote); err != nil {
			return err
		}
		path := bestPath(h, remote)
		time.Sleep(opts.settle)
		emit("direct", map[string]any{"path": path, "seconds": seconds, "connections": pathsTo(h, remote)})
	}
	emit("done", nil)
	return nil
}

// emitIdentified prints what the target said of itself; Connect has waited for that.
func emitIdentified(h host.Host, remote peer.ID) error {
	agent, err := h.Peerstore().Get(remote, "AgentVersion")
	if err != nil {
		return fmt.Errorf("identify told nothing: %w", err)
	}
	protocols, err := h.Peerstore().GetProtocols(remote)
	if err != nil {
		return err
	}
	emit("identified", map[string]any{"peer": remote.String(), "agent": agent, "protocols": protocols})
	return nil
}

// runEcho sends random bytes through the target's echo, whatever the path, and compares what comes back: so many on
// each of so many streams at once.
func runEcho(ctx context.Context, target string, opts options) error {
	ctx, cancel := context.WithTimeout(ctx, opts.timeout)
	defer cancel()
	h, remote, err := dial(ctx, target, opts)
	if err != nil {
		return err
	}
	defer h.Close()
	return echo(ctx, h, remote, opts.bytes, opts.streams)
}

func echo(ctx context.Context, h host.Host, remote peer.ID, size int64, count int) error {
	path := ""
	streams := make([]network.Stream, count)
	for i := range streams {
		stream, err := open(ctx, h, remote, echoProtocol)
		if err != nil {
			return err
		}
		streams[i] = stream
		path = pathOf(stream.Conn())
	}
	sent := make([]byte, size)
	if _, err := rand.Read(sent); err != nil {
		return err
	}
	start := time.Now()
	results := make(chan error, len(streams))
	for _, stream := range streams {
		go func() { results <- exchange(stream, sent) }()
	}
	var err error
	for range streams {
		err = errors.Join(err, <-results)
	}
	if err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	emit("echoed", map[string]any{
		"bytes": len(sent), "streams": len(streams), "seconds": time.Since(start).Seconds(), "path": path,
	})
	return nil
}

func exchange(stream network.Stream, sent []byte) error {
	written := make(chan error, 1)
	go func() {
		_, err := stream.Write(sent)
		written <- errors.Join(err, stream.CloseWrite())
	}()
	received, err := io.ReadAll(stream)
	if err := errors.Join(err, <-written); err != nil {
		return err
	}
	if !bytes.Equal(sent, received) {
		return fmt.Errorf("%d bytes sent, %d other bytes received", len(sent), len(received))
	}
	return nil
}

// dial connects a new host to the target, over a limited connection too.
func dial(ctx context.Context, target string, opts options) (host.Host, peer.ID, error) {
	if opts.punch && len(opts.listen) == 0 {
		opts.listen = addrs{"/ip4/0.0.0.0/tcp/0"} // to punch is to dial from the port that one listens on
	}
	info, err := peer.AddrInfoFromString(target)
	if err != nil {
		return nil, "", err
	}
	h, err := newHost(opts)
	if err != nil {
		return nil, "", err
	}
	if err := reserve(ctx, h, opts); err != nil {
		h.Close()
		return nil, "", err
	}
	if opts.punch && isCircuit(info.Addrs[0]) {
		// The target punches as soon as it sees us, so be ready: meet the relay first, which tells us our address.
		if err = connectRelay(ctx, h, info.Addrs[0]); err == nil {
			err = waitPunchReady(ctx, h)
		}
		if err != nil {
			h.Close()
			return nil, "", err
		}
	}
	if err := h.Connect(network.WithAllowLimitedConn(ctx, "interop"), *info); err != nil {
		h.Close()
		return nil, "", err
	}
	return h, info.ID, nil
}

func connectRelay(ctx context.Context, h host.Host, circuit multiaddr.Multiaddr) error {
	before, _ := multiaddr.SplitFunc(circuit, func(part multiaddr.Component) bool {
		return part.Protocol().Code == multiaddr.P_CIRCUIT
	})
	info, err := peer.AddrInfoFromP2pAddr(before)
	if err != nil {
		return err
	}
	return h.Connect(ctx, *info)
}

func open(ctx context.Context, h host.Host, remote peer.ID, name protocol.ID) (network.Stream, error) {
	stream, err := h.NewStream(network.WithAllowLimitedConn(ctx, "interop"), remote, name)
	if err != nil {
		return nil, err
	}
	if deadline, set := ctx.Deadline(); set {
		_ = stream.SetDeadline(deadline)
	}
	return stream, nil
}

// pong pings once, on a stream of its own so that it takes the direct connection as soon as there is one.
func pong(ctx context.Context, h host.Host, remote peer.ID) error {
	stream, err := open(ctx, h, remote, ping.ID)
	if err != nil {
		return err
	}
	defer stream.Close()
	sent := make([]byte, ping.PingSize)
	received := make([]byte, ping.PingSize)
	if _, err := rand.Read(sent); err != nil {
		return err
	}
	start := time.Now()
	if _, err := stream.Write(sent); err != nil {
		return err
	}
	if _, err := io.ReadFull(stream, received); err != nil {
		return err
	}
	elapsed := time.Since(start)
	if !bytes.Equal(sent, received) {
		return errors.New("the pong is not the ping's")
	}
	emit("pong", map[string]any{"rtt_ms": float64(elapsed.Microseconds()) / 1000, "path": pathOf(stream.Conn())})
	return nil
}

// bestPath is that of a connection which is not relayed, if there is one.
func bestPath(h host.Host, remote peer.ID) string {
	return pathsTo(h, remote)[0] // "direct/..." sorts before "relayed"
}

func waitDirect(ctx context.Context, h host.Host, remote peer.ID) error {
	for {
		for _, conn := range h.Network().ConnsToPeer(remote) {
			if pathOf(conn) != "relayed" {
				return nil
			}
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return errors.New("no direct connection within the timeout")
		}
	}
}
