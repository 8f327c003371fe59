//go:build gocv_specific_modules

// Package opencv decodes images, finds features, aligns photographs with
// reference faces and measures regions. It is the only package that touches
// OpenCV, and runs only in the sandboxed worker process.
package opencv

import (
	"errors"
	"fmt"
	"image"
	"image/color"
	"io"
	"math"
	"net"
	"os"

	"gocv.io/x/gocv"

	"inspectd.org/inspectd/vision"
)

// Version is the version of OpenCV that is loaded.
func Version() string { return gocv.OpenCVVersion() }

// mats owns the Mats of one operation. Go's collector does not see them.
type mats []*gocv.Mat

func (m *mats) new() *gocv.Mat {
	return m.own(gocv.NewMat())
}

func (m *mats) own(mat gocv.Mat) *gocv.Mat {
	*m = append(*m, &mat)
	return &mat
}

func (m *mats) close() {
	for _, mat := range *m {
		mat.Close()
	}
	*m = nil
}

// Worker serves requests about one image at a time.
type Worker struct {
	open  mats // what lives as long as the open image
	photo *gocv.Mat
	grey  *gocv.Mat
	face  *gocv.Mat // the photograph turned onto the face of the last comparison
}

// NewWorker sets OpenCV to one thread: the daemon runs several workers instead.
func NewWorker() *Worker {
	gocv.SetNumThreads(1)
	return &Worker{}
}

// WarmUp runs every operation once on a picture of our own, so that everything
// OpenCV loads or starts at first use is there before the sandbox closes.
func (w *Worker) WarmUp() error {
	var m mats
	defer m.close()
	img := m.own(gocv.NewMatWithSizeFromScalar(gocv.NewScalar(200, 200, 200, 0), 320, 320, gocv.MatTypeCV8UC3))
	for i := range 40 {
		p := image.Pt(20+i*37%280, 20+i*59%280)
		if err := gocv.Rectangle(img, image.Rectangle{p, p.Add(image.Pt(12+i%9, 9+i%11))}, color.RGBA{uint8(i * 6), 40, 90, 255}, -1); err != nil {
			return err
		}
	}
	for _, ext := range []gocv.FileExt{gocv.PNGFileExt, gocv.JPEGFileExt} {
		buf, err := gocv.IMEncode(ext, *img)
		if err != nil {
			return err
		}
		file := append([]byte(nil), buf.GetBytes()...)
		buf.Close()
		if _, _, err := w.openImage(file); err != nil {
			return err
		}
	}
	w.Close()
	return nil
}

// Close releases the open image.
func (w *Worker) Close() {
	w.open.close()
	w.photo, w.grey, w.face = nil, nil, nil
}

// Serve answers requests until the daemon closes the connection.
func (w *Worker) Serve(c *net.UnixConn) error {
	for {
		var req vision.Request
		_, files, err := vision.ReadFrame(c, &req)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		resp, blob := w.answer(&req, files)
		if err := vision.WriteFrame(c, resp, blob, nil); err != nil {
			return err
		}
	}
}

func (w *Worker) answer(req *vision.Request, files []*os.File) (*vision.Response, []byte) {
	contents, err := readFiles(files)
	if err != nil {
		return &vision.Response{Error: err.Error()}, nil
	}
	resp, blob, err := w.do(req, contents)
	if err != nil {
		return &vision.Response{Error: err.Error()}, nil
	}
	return resp, blob
}

func readFiles(files []*os.File) ([][]byte, error) {
	var contents [][]byte
	var failed error
	for _, f := range files {
		// The file offset is shared with the daemon, which wrote the file: read from 0.
		b, err := io.ReadAll(io.NewSectionReader(f, 0, math.MaxInt32))
		failed = errors.Join(failed, err, f.Close())
		contents = append(contents, b)
	}
	return contents, failed
}

func (w *Worker) do(req *vision.Request, files [][]byte) (*vision.Response, []byte, error) {
	switch {
	case req.Op == "open" && len(files) == 1:
		f, resp, err := w.openImage(files[0])
		if err != nil {
			return nil, nil, err
		}
		blob, err := f.MarshalBinary()
		return resp, blob, err
	case w.photo == nil:
		return nil, nil, errors.New("no image is open")
	case req.Op == "compare" && req.Compare != nil && len(files) == 1+len(req.Compare.Fakes):
		m, err := w.compare(req.Compare, files[0], files[1:])
		return &vision.Response{Measured: m}, nil, err
	case req.Op == "overlay" && req.Overlay != nil:
		blob, err := w.overlay(req.Overlay.Marks)
		return &vision.Response{}, blob, err
	case req.Op == "rectify" && w.face != nil:
		blob, err := encode(gocv.PNGFileExt, w.face)
		return &vision.Response{}, blob, err
	}
	return nil, nil, fmt.Errorf("request %q is not understood", req.Op)
}

// decode decodes a file to 8-bit BGR. The daemon has checked its magic, its header
// and that it is complete; OpenCV tells failure by an empty Mat.
func decode(m *mats, file []byte) (*gocv.Mat, error) {
	if len(file) == 0 {
		return nil, errors.New("the file is empty")
	}
	mat, err := gocv.IMDecode(file, gocv.IMReadColor)
	if err != nil {
		return nil, fmt.Errorf("the image cannot be decoded: %w", err)
	}
	img := m.own(mat)
	if img.Empty() {
		return nil, errors.New("the image cannot be decoded")
	}
	return img, nil
}

func (w *Worker) openImage(file []byte) (*vision.Features, *vision.Response, error) {
	w.Close()
	photo, err := decode(&w.open, file)
	if err != nil {
		return nil, nil, err
	}
	grey := w.open.new()
	if err := gocv.CvtColor(*photo, grey, gocv.ColorBGRToGray); err != nil {
		return nil, nil, err
	}
	f, err := features(grey, 1500)
	if err != nil {
		return nil, nil, err
	}
	w.photo, w.grey = photo, grey
	return f, &vision.Response{Width: photo.Cols(), Height: photo.Rows()}, nil
}

// featureSide is the long side to which an image is reduced for its features:
// larger costs time and finds print grain.
const featureSide = 1000

// features finds up to n ORB features, in pixels of the full image.
func features(grey *gocv.Mat, n int) (*vision.Features, error) {
	var m mats
	defer m.close()
	small, scale := grey, 1.0
	if long := max(grey.Cols(), grey.Rows()); long > featureSide {
		scale = featureSide / float64(long)
		small = m.new()
		size := image.Pt(int(float64(grey.Cols())*scale+0.5), int(float64(grey.Rows())*scale+0.5))
		if err := gocv.Resize(*grey, small, size, 0, 0, gocv.InterpolationArea); err != nil {
			return nil, err
		}
	}
	orb := gocv.NewORBWithParams(n, 1.2, 8, 31, 0, 2, gocv.ORBScoreTypeHarris, 31, 10)
	defer orb.Close()
	mask := m.new()
	points, desc := orb.DetectAndCompute(*small, *mask)
	m.own(desc)
	f := &vision.Features{}
	if len(points) == 0 {
		return f, nil
	}
	raw := desc.ToBytes()
	if len(raw) != 32*len(points) {
		return nil, fmt.Errorf("%d features have %d bytes of descriptors", len(points), len(raw))
	}
	for i, p := range points[:min(len(points), vision.MaxFeatures)] {
		f.Points = append(f.Points, [2]float64{p.X / scale, p.Y / scale})
		var d vision.Descriptor
		for k := range d {
			for b := range 8 {
				d[k] |= uint64(raw[32*i+8*k+b]) << (8 * b)
			}
		}
		f.Descriptors = append(f.Descriptors, d)
	}
	return f, nil
}

func encode(ext gocv.FileExt, img *gocv.Mat) ([]byte, error) {
	buf, err := gocv.IMEncode(ext, *img)
	if err != nil {
		return nil, err
	}
	defer buf.Close()
	return append([]byte(nil), buf.GetBytes()...), nil
}

// overlaySide bounds the pictures that people look at.
const overlaySide = 1280

func (w *Worker) overlay(marks []vision.Mark) ([]byte, error) {
	var m mats
	defer m.close()
	scale := min(1, overlaySide/float64(max(w.photo.Cols(), w.photo.Rows())))
	img := m.new()
	size := image.Pt(int(float64(w.photo.Cols())*scale), int(float64(w.photo.Rows())*scale))
	if err := gocv.Resize(*w.photo, img, size, 0, 0, gocv.InterpolationArea); err != nil {
		return nil, err
	}
	for _, mark := range marks {
		c := color.RGBA{40, 160, 60, 255}
		if mark.Bad {
			c = color.RGBA{220, 30, 40, 255}
		}
		var at [4]image.Point
		for i, p := range mark.Quad {
			at[i] = image.Pt(int(p[0]*scale), int(p[1]*scale))
		}
		for i := range at {
			if err := gocv.Line(img, at[i], at[(i+1)%4], c, 3); err != nil {
				return nil, err
			}
		}
		if err := gocv.PutText(img, mark.Label, at[0].Add(image.Pt(2, -7)), gocv.FontHersheySimplex, 0.6, c, 2); err != nil {
			return nil, err
		}
	}
	return encode(gocv.JPEGFileExt, img)
}
