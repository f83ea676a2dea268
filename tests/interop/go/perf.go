package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// /perf/1.0.0 in a few lines: go-libp2p has none in this release.
const perfProtocol = "/perf/1.0.0"

type zeros struct{}

func (zeros) Read(into []byte) (int, error) {
	clear(into)
	return len(into), nil
}

func sendZeros(stream network.Stream, size uint64) error {
	_, err := io.CopyN(stream, zeros{}, int64(size))
	return errors.Join(err, stream.CloseWrite())
}

func servePerf(stream network.Stream) {
	var wanted [8]byte
	_, err := io.ReadFull(stream, wanted[:])
	if err == nil {
		_, err = io.Copy(io.Discard, stream)
	}
	if err == nil {
		err = sendZeros(stream, binary.BigEndian.Uint64(wanted[:]))
	}
	if err != nil {
		_ = stream.Reset()
		return
	}
	_ = stream.Close()
}

// runPerf sends so many bytes and asks for so many.
func runPerf(ctx context.Context, target string, opts options) error {
	ctx, cancel := context.WithTimeout(ctx, opts.timeout)
	defer cancel()
	h, remote, err := dial(ctx, target, opts)
	if err != nil {
		return err
	}
	defer h.Close()
	stream, err := open(ctx, h, remote, perfProtocol)
	if err != nil {
		return err
	}
	start := time.Now()
	if _, err := stream.Write(binary.BigEndian.AppendUint64(nil, opts.download)); err != nil {
		return err
	}
	if err := sendZeros(stream, opts.upload); err != nil {
		return err
	}
	received, err := io.Copy(io.Discard, stream)
	if err != nil {
		return err
	}
	if uint64(received) != opts.download {
		return fmt.Errorf("perf: %d bytes came, not %d", received, opts.download)
	}
	emit("perf", map[string]any{
		"upload": opts.upload, "download": opts.download, "seconds": time.Since(start).Seconds(),
		"path": pathOf(stream.Conn()),
	})
	return nil
}
