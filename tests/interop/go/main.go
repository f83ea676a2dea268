// Interop-go is a go-libp2p peer for flare's interoperability tests: relay, listener, pinger and echo client
// behind one command line that the go, rust and js peers share. Events are JSON lines on stdout, logs go to stderr.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const usage = `usage:
  interop-go relay  [--listen ADDR]... [--limits | --no-limits] [--autonat] [--relay-buffer BYTES]
  interop-go listen [--listen ADDR]... [--relay ADDR]... [--punch] [--autonat]
  interop-go ping ADDR [--count N] [--echo N[,N]...] [--punch] [--settle S] [--listen ADDR]... [--relay ADDR]...
                  [--timeout S]
  interop-go echo ADDR [--bytes N] [--streams N] [--listen ADDR]... [--relay ADDR]... [--timeout S]
  interop-go perf ADDR [--upload N] [--download N] [--listen ADDR]... [--relay ADDR]... [--timeout S]
  interop-go reach ADDR [--version 1|2] [--external ADDR]... [--listen ADDR]... [--timeout S]
common: [--defaults] [--key ed25519|ecdsa|secp256k1|rsa] [--security tls|noise]
`

// options are the command line, the same for every command; each command reads the ones it knows.
type options struct {
	listen   addrs
	relays   addrs
	noLimits bool
	buffer   int
	punch    bool
	count    int
	echoes   sizes
	bytes    int64
	streams  int
	timeout  time.Duration
	key      string
	security string
	defaults bool
	settle   time.Duration
	upload   uint64
	download uint64
	autonat  bool
	version  int
	external addrs
}

// addrs collects a flag that may be given several times.
type addrs []string

func (a *addrs) String() string     { return fmt.Sprint(*a) }
func (a *addrs) Set(v string) error { *a = append(*a, v); return nil }

// sizes collects numbers of bytes, several in one flag.
type sizes []int64

func (s *sizes) String() string { return fmt.Sprint(*s) }

func (s *sizes) Set(list string) error {
	for text := range strings.SplitSeq(list, ",") {
		size, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return err
		}
		*s = append(*s, size)
	}
	return nil
}

var stdout sync.Mutex

// emit prints one JSON line; keys come out sorted.
func emit(name string, fields map[string]any) {
	line := map[string]any{"event": name}
	for key, value := range fields {
		line[key] = value
	}
	encoded, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	stdout.Lock()
	defer stdout.Unlock()
	fmt.Println(string(encoded))
}

// stdinClosed cancels once stdin ends, if stdin is a pipe or a socket: a test harness that dies takes its peers along,
// and a peer started with /dev/null or a terminal for stdin stays.
func stdinClosed(cancel context.CancelFunc) {
	info, err := os.Stdin.Stat()
	if err != nil || info.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
}

func parse(args []string) (command, target string, opts options, err error) {
	if len(args) == 0 {
		return "", "", opts, errors.New("no command")
	}
	command, args = args[0], args[1:]
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.Var(&opts.listen, "listen", "multiaddr to listen on")
	flags.Var(&opts.relays, "relay", "relay to reserve on")
	flags.BoolVar(&opts.noLimits, "no-limits", false, "relay: no limits on circuits, reservations or resources")
	limits := flags.Bool("limits", false, "relay: the limits as shipped (the default)")
	flags.IntVar(&opts.buffer, "relay-buffer", 0, "relay: copy buffer in bytes (0: as shipped)")
	flags.BoolVar(&opts.punch, "punch", false, "take part in DCUtR; ping: and wait for a direct connection")
	flags.IntVar(&opts.count, "count", 1, "pings to send")
	flags.Var(&opts.echoes, "echo", "ping: bytes to echo after the pings, each in its turn")
	flags.Int64Var(&opts.bytes, "bytes", 65536, "bytes to echo on each stream")
	flags.IntVar(&opts.streams, "streams", 1, "streams to echo on at once")
	seconds := flags.Float64("timeout", 30, "seconds for the whole command")
	flags.StringVar(&opts.key, "key", "ed25519", "identity key type")
	flags.StringVar(&opts.security, "security", "", "tls or noise alone (default: both, as shipped)")
	flags.BoolVar(&opts.autonat, "autonat", false, "relay, listen: dial others back, AutoNAT v1 and v2")
	flags.IntVar(&opts.version, "version", 2, "reach: of AutoNAT")
	flags.Var(&opts.external, "external", "reach: address to ask about (default: those listened on)")
	flags.BoolVar(&opts.defaults, "defaults", false, "go-libp2p's own choice of transports, security and resources")
	flags.Uint64Var(&opts.upload, "upload", 1<<20, "perf: bytes to send")
	flags.Uint64Var(&opts.download, "download", 1<<20, "perf: bytes to ask for")
	settle := flags.Float64("settle", 0, "ping --punch: seconds before it counts the connections")

	if slices.Contains([]string{"ping", "echo", "perf", "reach"}, command) {
		if len(args) == 0 {
			return command, "", opts, errors.New("no ADDR")
		}
		target, args = args[0], args[1:]
	}
	if err = flags.Parse(args); err != nil {
		return command, target, opts, err
	}
	if flags.NArg() > 0 {
		return command, target, opts, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *limits && opts.noLimits {
		return command, target, opts, errors.New("--limits and --no-limits exclude each other")
	}
	opts.timeout = time.Duration(*seconds * float64(time.Second))
	opts.settle = time.Duration(*settle * float64(time.Second))
	return command, target, opts, nil
}

func main() {
	command, target, opts, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, usage)
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	stdinClosed(cancel)

	switch command {
	case "relay":
		err = runRelay(ctx, opts)
	case "listen":
		err = runListen(ctx, opts)
	case "ping":
		err = runPing(ctx, target, opts)
	case "echo":
		err = runEcho(ctx, target, opts)
	case "perf":
		err = runPerf(ctx, target, opts)
	case "reach":
		err = runReach(ctx, target, opts)
	default:
		err = fmt.Errorf("unknown command %q\n%s", command, usage)
	}
	if err != nil {
		emit("error", map[string]any{"reason": err.Error()})
		os.Exit(1)
	}
}
