"""flare with real peers: go-libp2p, rust-libp2p and js-libp2p."""
