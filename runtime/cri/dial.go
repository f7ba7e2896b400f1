package cri

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// maxMessage is the longest CRI message in bytes, as upstream's kubelet has it:
// a list of a thousand containers is longer than gRPC's 4 MiB.
const maxMessage = 16 << 20

// ErrAddress says that an address names no Unix socket.
var ErrAddress = errors.New("want the path of a Unix socket, like unix:///run/containerd/containerd.sock")

// SocketPath returns the path in an address "unix:///PATH" or "/PATH".
func SocketPath(address string) (string, error) {
	path := strings.TrimPrefix(address, "unix://")
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("container runtime address %q: %w", address, ErrAddress)
	}
	return filepath.Clean(path), nil
}

// Dial returns a connection to a CRI runtime's Unix socket. It connects when it
// is used, and again whenever the runtime was away.
func Dial(address string) (*grpc.ClientConn, error) {
	path, err := SocketPath(address)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("container runtime address %q: %w", address, err)
	}
	return conn, nil
}

// IsSocket tells whether there is a socket at an address's path.
func IsSocket(address string) bool {
	path, err := SocketPath(address)
	if err != nil {
		return false
	}
	info, err := os.Stat(path)
	return err == nil && info.Mode()&os.ModeSocket != 0
}
