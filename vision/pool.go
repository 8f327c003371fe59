package vision

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// Errors of a worker.
var (
	// ErrNoWorker is returned when there is no worker to ask: the program is not
	// there, or it does not start.
	ErrNoWorker = errors.New("the vision worker is not available")
	// ErrWorkerDied is returned when the worker crashed on a request.
	ErrWorkerDied = errors.New("the vision worker crashed on this image")
	// ErrWorkerLate is returned when the worker did not answer in time and was ended.
	ErrWorkerLate = errors.New("the vision worker did not answer in time")
)

// PoolOptions configure a Pool.
type PoolOptions struct {
	Program string        // path of inspectd-vision
	Workers int           // processes at most; 0 means 2
	Timeout time.Duration // per request; 0 means 5 s
	Log     zerolog.Logger
}

// recycleAfter is how many images a worker sees before a fresh one takes its
// place, which bounds what a slow leak or a lingering corruption can do.
const recycleAfter = 200

// Pool keeps worker processes. It starts them when needed; a worker that crashed,
// hung or misspoke is ended, and the next request gets a fresh one.
type Pool struct {
	opts  PoolOptions
	slots chan struct{} // one token for each worker that may be in use

	mu     sync.Mutex
	idle   []*worker
	status PoolStatus
	closed bool
}

// PoolStatus is what people are told of the workers.
type PoolStatus struct {
	Available bool     `json:"available"`
	Error     string   `json:"error,omitempty"` // why none is available
	OpenCV    string   `json:"opencv,omitempty"`
	Layers    []string `json:"layers,omitempty"` // of the sandbox that are active
	Restarts  int      `json:"restarts"`         // after crashes and time-outs
	Images    int      `json:"images"`
}

// NewPool prepares a pool; nothing is started before the first request.
func NewPool(opts PoolOptions) *Pool {
	if opts.Workers == 0 {
		opts.Workers = 2
	}
	if opts.Timeout == 0 {
		opts.Timeout = 5 * time.Second
	}
	return &Pool{opts: opts, slots: make(chan struct{}, opts.Workers)}
}

// Status tells how the workers stand.
func (p *Pool) Status() PoolStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// Probe starts a worker if none runs, so that Status speaks of this machine.
func (p *Pool) Probe(ctx context.Context) error {
	return p.With(ctx, func(*Worker) error { return nil })
}

// With runs fn with a worker of its own. When fn returns an error of the worker
// (ErrWorkerDied, ErrWorkerLate), that worker is ended.
func (p *Pool) With(ctx context.Context, fn func(*Worker) error) error {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	w, err := p.take()
	if err != nil {
		return err
	}
	err = fn(&Worker{w, p.opts.Timeout})
	p.giveBack(w, err)
	return err
}

func (p *Pool) take() (*worker, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		w := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return w, nil
	}
	p.mu.Unlock()
	w, err := startWorker(p.opts)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.status.Available, p.status.Error = false, err.Error()
		return nil, err
	}
	p.status.Available, p.status.Error = true, ""
	p.status.OpenCV, p.status.Layers = w.hello.OpenCV, w.hello.Layers
	return w, nil
}

func (p *Pool) giveBack(w *worker, err error) {
	broken := errors.Is(err, ErrWorkerDied) || errors.Is(err, ErrWorkerLate)
	p.mu.Lock()
	p.status.Images++
	if broken {
		p.status.Restarts++
		p.opts.Log.Warn().Err(err).Int("pid", w.cmd.Process.Pid).Msg("vision worker ended")
	}
	keep := !broken && !p.closed && w.images < recycleAfter
	if keep {
		p.idle = append(p.idle, w)
	}
	p.mu.Unlock()
	if !keep {
		w.stop()
	}
}

// Close ends all workers. Requests under way finish first.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, w := range idle {
		w.stop()
	}
}

// worker is one process and our end of its socket.
type worker struct {
	cmd    *exec.Cmd
	conn   *net.UnixConn
	hello  Hello
	images int
}

// workerEnv is all that a worker gets of the environment. OpenCV reads its limits
// once, when it is loaded.
var workerEnv = []string{
	"OPENCV_IO_MAX_IMAGE_PIXELS=100000000", "OPENCV_IO_MAX_IMAGE_WIDTH=16384", "OPENCV_IO_MAX_IMAGE_HEIGHT=16384",
	"GOMAXPROCS=2", "OPENCV_OPENCL_RUNTIME=disabled",
}

func startWorker(opts PoolOptions) (*worker, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoWorker, err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "worker"), os.NewFile(uintptr(fds[1]), "daemon")
	defer ours.Close()
	defer theirs.Close()
	cmd := exec.Command(opts.Program)
	cmd.ExtraFiles = []*os.File{theirs} // fd 3
	cmd.Env = workerEnv
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoWorker, err)
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, errors.Join(ErrNoWorker, err, cmd.Process.Kill(), cmd.Wait())
	}
	w := &worker{cmd: cmd, conn: conn.(*net.UnixConn)}
	theirs.Close() // so that a dead worker shows as end of file
	w.conn.SetDeadline(time.Now().Add(20 * time.Second))
	_, _, err = ReadFrame(w.conn, &w.hello)
	if err == nil && w.hello.Error != "" {
		err = errors.New(w.hello.Error)
	}
	if err != nil {
		w.stop()
		return nil, fmt.Errorf("%w: %s did not come up, is it the inspectd-vision of this version? %w", ErrNoWorker, opts.Program, err)
	}
	return w, nil
}

// stop ends the process and collects it.
func (w *worker) stop() {
	w.conn.Close()
	// It ends by itself at end of file; one that hangs in C++ does not.
	w.cmd.Process.Kill()
	w.cmd.Wait() //nolint:errcheck // how a killed worker ended tells nothing
}

// Worker is a worker process for the duration of one image.
type Worker struct {
	w       *worker
	timeout time.Duration
}

// Refused is an answer of the worker that it could not do what was asked with this
// image. The worker is well.
type Refused struct{ Reason string }

func (e *Refused) Error() string { return e.Reason }

func (w *Worker) ask(req Request, contents ...[]byte) (*Response, []byte, error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, b := range contents {
		f, err := sealedFile(b)
		if err != nil {
			return nil, nil, err
		}
		files = append(files, f)
	}
	w.w.conn.SetDeadline(time.Now().Add(w.timeout))
	err := WriteFrame(w.w.conn, req, nil, files)
	var resp Response
	var blob []byte
	if err == nil {
		var extra []*os.File
		blob, extra, err = ReadFrame(w.w.conn, &resp)
		for _, f := range extra {
			f.Close()
		}
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, nil, ErrWorkerLate
	case err != nil:
		return nil, nil, fmt.Errorf("%w (%w)", ErrWorkerDied, err)
	case resp.Error != "":
		return nil, nil, &Refused{resp.Error}
	}
	return &resp, blob, nil
}

// Open decodes an image and returns its size and features.
func (w *Worker) Open(image []byte) (width, height int, f *Features, err error) {
	w.w.images++
	resp, blob, err := w.ask(Request{Op: "open"}, image)
	if err != nil {
		return 0, 0, nil, err
	}
	f = new(Features)
	if err := f.UnmarshalBinary(blob); err != nil {
		return 0, 0, nil, fmt.Errorf("%w: %w", ErrWorkerDied, err)
	}
	return resp.Width, resp.Height, f, nil
}

// Compare aligns the open image with a face and measures it. files holds the face
// and then the pictures of the known fakes, in the order of req.Fakes.
func (w *Worker) Compare(req CompareRequest, files ...[]byte) (*Measurement, error) {
	resp, _, err := w.ask(Request{Op: "compare", Compare: &req}, files...)
	if err != nil {
		return nil, err
	}
	if resp.Measured == nil {
		return nil, fmt.Errorf("%w: no measurement in its answer", ErrWorkerDied)
	}
	if err := resp.Measured.answers(&req); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrWorkerDied, err)
	}
	return resp.Measured, nil
}

// Rectify returns the open image as Compare last saw it: turned onto the face, as
// PNG. Known counterfeit features are cut from it.
func (w *Worker) Rectify() ([]byte, error) {
	_, blob, err := w.ask(Request{Op: "rectify"})
	return blob, err
}

// Overlay draws marks onto the open image and returns it as JPEG.
func (w *Worker) Overlay(marks []Mark) ([]byte, error) {
	_, blob, err := w.ask(Request{Op: "overlay", Overlay: &OverlayRequest{marks}})
	return blob, err
}
