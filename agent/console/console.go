package console

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/queue"
)

//go:embed page.html style.css page.js
var files embed.FS

// Options configure a Server.
type Options struct {
	Listen  string // loopback address of the page
	Metrics string // loopback address of /metrics, /healthz and /readyz
	Socket  string // Unix socket for commands; empty: none
	Data    string // data folder, for verification
	Store   *queue.Store
	Status  func() (*Status, error)
	Alive   func() error // nil while every loop of the daemon turns
	Log     zerolog.Logger
}

// Server serves the page, the socket and the metrics.
type Server struct {
	opts    Options
	page    *template.Template
	servers []*http.Server
	listen  []net.Listener
	addrs   [2]string

	verifying sync.Mutex
}

// verifyFolders hold the copies that verification works on.
const verifyFolders = "verify-*"

// New opens all listeners, so that an address in use is told at once.
func New(opts Options) (*Server, error) {
	t, err := template.New("page.html").Funcs(funcs).ParseFS(files, "page.html")
	if err != nil {
		return nil, err
	}
	s := &Server{opts: opts, page: t}
	left, err := filepath.Glob(filepath.Join(opts.Data, verifyFolders))
	for _, dir := range left { // of a daemon that was killed meanwhile
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		return nil, err
	}
	for i, addr := range []string{opts.Listen, opts.Metrics} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("listen on %s for %s: %w", addr, [2]string{"the page", "metrics"}[i], err)
		}
		s.addrs[i] = l.Addr().String()
		s.listen = append(s.listen, l)
	}
	s.serve(guard(s.addrs[0], s.pageHandler()))
	s.serve(guard(s.addrs[1], s.metricsHandler()))
	if opts.Socket != "" {
		l, err := listenSocket(opts.Socket)
		if err != nil {
			s.close()
			return nil, err
		}
		s.listen = append(s.listen, l)
		s.serve(s.apiHandler())
	}
	return s, nil
}

func (s *Server) serve(h http.Handler) {
	s.servers = append(s.servers, &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10})
}

// listenSocket replaces a socket left over from a crash; the data folder's lock
// has shown that no other daemon uses it.
func listenSocket(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of the socket: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, os.Chmod(path, 0o660)
}

// Addresses are where the page and the metrics listen.
func (s *Server) Addresses() (page, metrics string) { return s.addrs[0], s.addrs[1] }

func (s *Server) close() {
	for _, l := range s.listen {
		l.Close()
	}
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for i, server := range s.servers {
		server.BaseContext = func(net.Listener) context.Context { return ctx }
		g.Go(func() error {
			if err := server.Serve(s.listen[i]); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve: %w", err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			return server.Close()
		})
	}
	return g.Wait()
}

// guard stands before everything that listens on TCP. The Host check stops a
// foreign page from reaching the lane through a name of its own (DNS rebinding);
// the policy lets the page load nothing but its own files.
func guard(addr string, next http.Handler) http.Handler {
	_, port, _ := net.SplitHostPort(addr)
	hosts := map[string]bool{addr: true, "localhost:" + port: true, "127.0.0.1:" + port: true, "[::1]:" + port: true}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if !hosts[r.Host] {
			http.Error(w, "This lane answers only under its own address: http://"+addr, http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) pageHandler() http.Handler {
	mux := http.NewServeMux()
	s.routes(mux)
	mux.HandleFunc("GET /{$}", s.servePage)
	mux.HandleFunc("GET /api/v1/events", s.serveEvents)
	mux.Handle("GET /style.css", http.FileServerFS(files))
	mux.Handle("GET /page.js", http.FileServerFS(files))
	mux.HandleFunc("GET /healthz", s.serveHealth)
	mux.HandleFunc("GET /readyz", s.serveReady)
	return mux
}

func (s *Server) metricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(newMetrics(s), promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", s.serveHealth)
	mux.HandleFunc("GET /readyz", s.serveReady)
	return mux
}

// apiHandler serves commands; whoever may open the socket may ask.
func (s *Server) apiHandler() http.Handler {
	mux := http.NewServeMux()
	s.routes(mux)
	mux.HandleFunc("GET /api/v1/verify", s.serveVerify)
	return mux
}

// routes are what both doors offer. All of it only reads.
func (s *Server) routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/v1/status", s.serveStatus)
	mux.HandleFunc("GET /api/v1/items", s.serveItems)
	mux.HandleFunc("GET /api/v1/items/{id}", s.serveItem)
	mux.HandleFunc("GET /api/v1/quarantine", s.serveQuarantine)
	mux.HandleFunc("GET /api/v1/evidence/{sha256}", s.serveEvidence)
}

func writeJSON(w http.ResponseWriter, v any, err error) {
	switch {
	case errors.Is(err, queue.ErrNotFound):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", " ")
		enc.Encode(v) //nolint:errcheck // a reader who went away needs no answer
	}
}

func (s *Server) serveStatus(w http.ResponseWriter, _ *http.Request) {
	st, err := s.opts.Status()
	writeJSON(w, st, err)
}

// Items lists inspections with their last report.
type Items struct {
	Schema string  `json:"schema"` // inspectd.items/v1
	Items  []*Item `json:"items"`
}

// Item is an inspection with its last report, nil before the first.
type Item struct {
	Inspection *lane.Inspection `json:"inspection"`
	Report     *lane.Report     `json:"report,omitempty"`
}

func (s *Server) item(in *lane.Inspection) (*Item, error) {
	it := &Item{Inspection: in}
	if in.Revision == 0 {
		return it, nil
	}
	var err error
	it.Report, err = s.opts.Store.Report(in.ID, in.Revision)
	return it, err
}

// recentItems is how many inspections lists show.
const recentItems = 50

func (s *Server) items() (*Items, error) {
	list, err := s.opts.Store.Recent(recentItems)
	if err != nil {
		return nil, err
	}
	out := &Items{Schema: "inspectd.items/v1", Items: []*Item{}}
	for _, in := range list {
		it, err := s.item(in)
		if err != nil {
			return nil, err
		}
		out.Items = append(out.Items, it)
	}
	return out, nil
}

func (s *Server) serveItems(w http.ResponseWriter, _ *http.Request) {
	items, err := s.items()
	writeJSON(w, items, err)
}

func (s *Server) serveItem(w http.ResponseWriter, r *http.Request) {
	in, err := s.opts.Store.Inspection(r.PathValue("id"))
	if err != nil {
		writeJSON(w, nil, err)
		return
	}
	it, err := s.item(in)
	writeJSON(w, it, err)
}

func (s *Server) serveQuarantine(w http.ResponseWriter, _ *http.Request) {
	list, err := s.opts.Store.Quarantined(recentItems)
	writeJSON(w, map[string]any{"schema": "inspectd.quarantine/v1", "quarantine": list}, err)
}

// serveEvidence hands out evidence. Only pictures are shown as such; anything else
// a device sent must never run in the page's name.
func (s *Server) serveEvidence(w http.ResponseWriter, r *http.Request) {
	data, err := s.opts.Store.Evidence(lane.Digest(r.PathValue("sha256")))
	if err != nil {
		writeJSON(w, nil, err)
		return
	}
	switch kind := http.DetectContentType(data); kind {
	case "image/png", "image/jpeg":
		w.Header().Set("Content-Type", kind)
	default:
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Disposition", "attachment")
	}
	w.Header().Set("Cache-Control", "private, max-age=86400, immutable") // named by its digest
	w.Write(data)                                                        //nolint:errcheck // a reader who went away needs no answer
}

// serveVerify checks the whole store, on a snapshot, so that intake goes on.
func (s *Server) serveVerify(w http.ResponseWriter, _ *http.Request) {
	s.verifying.Lock() // one at a time: each needs a copy of the database
	defer s.verifying.Unlock()
	dir, err := os.MkdirTemp(s.opts.Data, verifyFolders)
	if err != nil {
		writeJSON(w, nil, err)
		return
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, "inspectd.db")
	if err := s.opts.Store.Snapshot(copied); err != nil {
		writeJSON(w, nil, err)
		return
	}
	v, err := queue.VerifyFile(copied, s.opts.Data)
	writeJSON(w, v, err)
}

// serveHealth answers whether the process works; it depends on nothing outside.
func (s *Server) serveHealth(w http.ResponseWriter, _ *http.Request) {
	if err := s.opts.Alive(); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// serveReady answers whether goods may be inspected on this lane now.
func (s *Server) serveReady(w http.ResponseWriter, _ *http.Request) {
	st, err := s.opts.Status()
	if err != nil || st.State != "ready" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	if err != nil {
		fmt.Fprintln(w, err)
		return
	}
	fmt.Fprintln(w, st.State)
	for _, p := range st.Problems {
		fmt.Fprintf(w, "%s %s: %s\n", p.Severity, p.Code, p.Text)
	}
}
