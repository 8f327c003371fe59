//go:build gocv_specific_modules

// Inspectd-vision is the worker process of inspectd that touches untrusted
// pixels. The daemon starts it with a socket as file descriptor 3; it locks itself
// in, then answers requests until the socket closes.
package main

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"inspectd.org/inspectd/vision"
	"inspectd.org/inspectd/vision/opencv"
)

func main() {
	conn, err := daemonSocket()
	if err != nil {
		fmt.Fprintf(os.Stderr, "inspectd-vision: %v\ninspectd starts this program by itself; there is nothing to run by hand.\n", err)
		os.Exit(64)
	}
	// Stopping the service, or Ctrl-C, reaches the whole group. The daemon decides when
	// its workers end: by closing the socket.
	signal.Ignore(os.Interrupt, syscall.SIGTERM)
	hello := vision.Hello{OpenCV: opencv.Version()}
	worker := opencv.NewWorker()
	if err := worker.WarmUp(); err != nil {
		hello.Error = "warm-up: " + err.Error()
	} else if hello.Layers, err = lockIn(); err != nil {
		hello.Error = "sandbox: " + err.Error()
	}
	if err := vision.WriteFrame(conn, hello, nil, nil); err != nil || hello.Error != "" {
		os.Exit(1)
	}
	if worker.Serve(conn) != nil {
		os.Exit(1)
	}
}

func daemonSocket() (*net.UnixConn, error) {
	f := os.NewFile(3, "daemon")
	if f == nil {
		return nil, fmt.Errorf("no socket from the daemon")
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("no socket from the daemon: %w", err)
	}
	f.Close()
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("descriptor 3 is no Unix socket")
	}
	return conn, nil
}
