// Package network is the protocol between a node's agent and the network of
// its pods: the messages and the service of network.proto.
package network

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative network.proto
