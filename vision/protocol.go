// Package vision judges photographs of packs against reference packs: which
// product a photograph shows, and whether its printed features are the genuine
// ones. It is pure Go. Everything that touches untrusted pixels runs in worker
// processes (cmd/inspectd-vision), which this package starts, feeds and bounds.
package vision

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// The protocol between daemon and worker. A frame is eight bytes (length of the
// JSON, length of the blob, big endian), then both. Images travel as sealed
// memory files attached to the frame: never by name, never writable by the sender
// once sent. Both sides treat what they read as hostile.
const (
	maxFrameJSON = 4 << 20
	maxFrameBlob = 32 << 20
	maxFrameFDs  = 8
)

// Hello is the worker's first frame: what it is and how it is locked in.
type Hello struct {
	OpenCV string   `json:"opencv"`
	Layers []string `json:"layers"` // e.g. "landlock v7", "seccomp", "rlimits"
	Error  string   `json:"error,omitempty"`
}

// Request asks one thing of a worker. Open comes first; Compare and Overlay refer
// to the image opened last.
type Request struct {
	Op      string          `json:"op"` // open, compare, overlay, rectify
	Compare *CompareRequest `json:"compare,omitempty"`
	Overlay *OverlayRequest `json:"overlay,omitempty"`
}

// CompareRequest asks to align the open image with a reference face and to measure
// its regions. File 0 is the face as PNG, the others are the known fakes.
type CompareRequest struct {
	Pairs   []Pair            `json:"pairs"` // matched points
	Regions map[string]Region `json:"regions"`
	Fakes   []FakeRequest     `json:"fakes,omitempty"`
}

// FakeRequest names a known counterfeit feature; its picture is an attached file.
type FakeRequest struct {
	Name   string `json:"name"`
	Region string `json:"region"`
}

// Pair is a point of the face and the point of the photograph it matches.
type Pair struct {
	Face  [2]float64 `json:"f"`
	Photo [2]float64 `json:"p"`
}

// OverlayRequest asks for the open image with marks on it, as JPEG.
type OverlayRequest struct {
	Marks []Mark `json:"marks"`
}

// Mark is an outlined region in the pixels of the photograph.
type Mark struct {
	Quad  [4][2]float64 `json:"quad"`
	Label string        `json:"label"`
	Bad   bool          `json:"bad"`
}

// Response is the answer to a Request. Error tells why the image, or this
// comparison, could not be done; the worker itself is well.
type Response struct {
	Error    string       `json:"error,omitempty"`
	Width    int          `json:"width,omitempty"`
	Height   int          `json:"height,omitempty"`
	Measured *Measurement `json:"measured,omitempty"`
}

// Measurement is what was measured on one photograph against one face.
type Measurement struct {
	Aligned    bool                         `json:"aligned"`
	Reason     string                       `json:"reason,omitempty"` // why it could not be aligned
	Homography [9]float64                   `json:"homography"`       // face to photograph
	Inliers    int                          `json:"inliers"`
	ResidualPx float64                      `json:"residual_px"` // median, in pixels of the face
	Agreement  float64                      `json:"agreement"`   // share of textured tiles that correlate
	Regions    map[string]RegionMeasurement `json:"regions,omitempty"`
	Fakes      []FakeMeasurement            `json:"fakes,omitempty"`
}

// answers checks that a measurement answers what was asked, with numbers that can
// be: a worker that was taken over must not make findings or passes out of nothing.
func (m *Measurement) answers(req *CompareRequest) error {
	if !m.Aligned {
		return nil
	}
	if len(m.Fakes) != len(req.Fakes) || len(m.Regions) != len(req.Regions) {
		return errors.New("its answer leaves out what was asked")
	}
	correlation := func(v float64) bool { return v >= -1.001 && v <= 1.001 }
	for name := range req.Regions {
		r, ok := m.Regions[name]
		if !ok || !correlation(r.ZNCC) || !correlation(r.Worst) || r.ShiftPx < 0 || r.ShiftPx > 1000 {
			return fmt.Errorf("its answer on region %q makes no sense", name)
		}
	}
	for i, f := range m.Fakes {
		if f.Name != req.Fakes[i].Name || !correlation(f.Fake) || !correlation(f.Genuine) {
			return fmt.Errorf("its answer on known fake %q makes no sense", req.Fakes[i].Name)
		}
	}
	return nil
}

// RegionMeasurement is what was measured on one region.
type RegionMeasurement struct {
	Quad    [4][2]float64 `json:"quad"`             // where it lies in the photograph
	Hidden  string        `json:"hidden,omitempty"` // why it cannot be judged
	ZNCC    float64       `json:"zncc"`             // best correlation of the whole region
	Worst   float64       `json:"worst"`            // correlation of its worst textured tile
	ShiftPx float64       `json:"shift_px"`         // displacement from its place, in pixels of the face
	Lab     [3]float64    `json:"lab"`              // mean colour minus the reference's, after the photometric fit
	DE2000  float64       `json:"de2000"`           // the same, for people
}

// FakeMeasurement compares a region with a known counterfeit and with the genuine.
type FakeMeasurement struct {
	Name    string  `json:"name"`
	Region  string  `json:"region"`
	Fake    float64 `json:"fake"` // correlation with the counterfeit feature
	Genuine float64 `json:"genuine"`
}

// Region is a named part of a face, in its pixels.
type Region struct {
	Kind string `json:"kind"` // logo, seal, text, colour
	Rect [4]int `json:"rect"` // x, y, width, height
}

// Features are ORB keypoints, in pixels of the image, with their descriptors.
type Features struct {
	Points      [][2]float64
	Descriptors []Descriptor
}

// Descriptor is a 256-bit ORB descriptor.
type Descriptor [4]uint64

// MaxFeatures bounds what a worker may return.
const MaxFeatures = 4000

// MarshalBinary packs features: per point two float32, then 32 bytes.
func (f *Features) MarshalBinary() ([]byte, error) {
	b := make([]byte, 0, len(f.Points)*40)
	for i, p := range f.Points {
		for _, v := range p {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(v)))
		}
		for _, w := range f.Descriptors[i] {
			b = binary.LittleEndian.AppendUint64(b, w)
		}
	}
	return b, nil
}

// UnmarshalBinary unpacks what MarshalBinary packed.
func (f *Features) UnmarshalBinary(b []byte) error {
	if len(b)%40 != 0 || len(b)/40 > MaxFeatures {
		return fmt.Errorf("%d bytes are no list of features", len(b))
	}
	f.Points = make([][2]float64, len(b)/40)
	f.Descriptors = make([]Descriptor, len(b)/40)
	for i := range f.Points {
		rec := b[i*40:]
		for k := range 2 {
			v := float64(math.Float32frombits(binary.LittleEndian.Uint32(rec[4*k:])))
			if math.IsNaN(v) || math.Abs(v) > 1e5 {
				return errors.New("a feature lies nowhere")
			}
			f.Points[i][k] = v
		}
		for k := range 4 {
			f.Descriptors[i][k] = binary.LittleEndian.Uint64(rec[8+8*k:])
		}
	}
	return nil
}

// WriteFrame sends v as JSON with a blob and files.
func WriteFrame(c *net.UnixConn, v any, blob []byte, files []*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	header := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	header = binary.BigEndian.AppendUint32(header, uint32(len(blob)))
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	// The files go with the first bytes; the rest is plain stream.
	if n, _, err := c.WriteMsgUnix(header, oob, nil); err != nil || n != len(header) {
		return errors.Join(err, fmt.Errorf("%d of %d header bytes sent", n, len(header)))
	}
	if _, err := c.Write(body); err != nil {
		return err
	}
	_, err = c.Write(blob)
	return err
}

// ReadFrame reads a frame into v and returns its blob and files.
func ReadFrame(c *net.UnixConn, v any) (blob []byte, files []*os.File, err error) {
	header := make([]byte, 8)
	oob := make([]byte, unix.CmsgSpace(4*maxFrameFDs))
	n, oobn, _, _, err := c.ReadMsgUnix(header, oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return nil, nil, err
	}
	if files, err = receivedFiles(oob[:oobn]); err != nil {
		return nil, nil, err
	}
	if _, err := io.ReadFull(c, header[n:]); err != nil {
		return nil, files, err
	}
	size, blobSize := binary.BigEndian.Uint32(header), binary.BigEndian.Uint32(header[4:])
	if size > maxFrameJSON || blobSize > maxFrameBlob {
		return nil, files, fmt.Errorf("frame of %d and %d bytes is beyond the protocol", size, blobSize)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c, body); err != nil {
		return nil, files, err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return nil, files, fmt.Errorf("frame: %w", err)
	}
	blob = make([]byte, blobSize)
	_, err = io.ReadFull(c, blob)
	return blob, files, err
}

func receivedFiles(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "attached"))
		}
	}
	return files, nil
}

// sealedFile puts bytes into an anonymous memory file that nobody can change any
// more.
func sealedFile(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("inspectd-image", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make a memory file: %w", err)
	}
	f := os.NewFile(uintptr(fd), "image")
	if _, err := f.Write(b); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("seal a memory file: %w", err), f.Close())
	}
	return f, nil
}
