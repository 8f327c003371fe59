package devices

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"

	"inspectd.org/inspectd/agent/lane"
)

// Limits of an image's header. Nothing larger is ever decoded: a header of 33
// bytes can claim gigabytes.
const (
	MaxSide   = 16384
	MaxPixels = 100_000_000
)

// image reads the header of an image file and proves that the file is whole. A
// file that is an image but damaged is an observation all the same: it belongs to
// an item, and the officer is told to take it again.
func (d *decoder) image() error {
	info, err := ProbeImage(d.m.Payload)
	if err != nil {
		return err
	}
	d.mediaType(info.MediaType)
	info.Plane = d.fields["plane"]
	if info.Lossy && d.o.Kind == lane.XRay {
		d.note("IMG_LOSSY", "X-ray image compressed with loss (JPEG): fine structure may be gone")
	}
	d.o.Image = info
	return nil
}

var (
	pngMagic  = []byte("\x89PNG\r\n\x1a\n")
	jpegMagic = []byte("\xff\xd8\xff")
)

// ProbeImage reads the header of a PNG or JPEG file without decoding it, and
// checks that the file is complete: PNG chunk by chunk with their CRCs to IEND,
// JPEG marker by marker to EOI. Damage is told in the result; bytes that are
// neither format are refused.
func ProbeImage(b []byte) (*lane.ImageTaken, error) {
	switch {
	case bytes.HasPrefix(b, pngMagic):
		return probePNG(b), nil
	case bytes.HasPrefix(b, jpegMagic):
		return probeJPEG(b), nil
	}
	return nil, refuse("MSG_DECODE", "neither PNG nor JPEG: the content begins with % x", b[:min(8, len(b))])
}

func damage(info *lane.ImageTaken, code lane.Code, text string) *lane.ImageTaken {
	info.Code, info.Damage = code, text
	return info
}

// checkSize refuses headers that no lane device has.
func checkSize(info *lane.ImageTaken) bool {
	if info.Width < 1 || info.Height < 1 || info.Width > MaxSide || info.Height > MaxSide || info.Width*info.Height > MaxPixels {
		damage(info, "IMG_QUALITY", "the header claims a size this lane does not take")
		return false
	}
	return true
}

func probePNG(b []byte) *lane.ImageTaken {
	info := &lane.ImageTaken{MediaType: "image/png"}
	pos := len(pngMagic)
	pixels := false
	for first := true; ; first = false {
		if len(b)-pos < 12 {
			return damage(info, "IMG_INCOMPLETE", "the PNG file is cut off")
		}
		n := int(binary.BigEndian.Uint32(b[pos:]))
		kind := string(b[pos+4 : pos+8])
		if n < 0 || n > len(b)-pos-12 {
			return damage(info, "IMG_INCOMPLETE", "the PNG file is cut off")
		}
		if crc32.ChecksumIEEE(b[pos+4:pos+8+n]) != binary.BigEndian.Uint32(b[pos+8+n:]) {
			return damage(info, "IMG_INCOMPLETE", "a part of the PNG file is damaged (checksum)")
		}
		if first {
			if kind != "IHDR" || n != 13 {
				return damage(info, "IMG_INCOMPLETE", "the PNG file has no header")
			}
			info.Width = int(binary.BigEndian.Uint32(b[pos+8:]))
			info.Height = int(binary.BigEndian.Uint32(b[pos+12:]))
			info.Depth = int(b[pos+16])
			if !checkSize(info) {
				return info
			}
		}
		pos += 12 + n
		pixels = pixels || kind == "IDAT" && n > 0
		if kind == "IEND" {
			if !pixels {
				return damage(info, "IMG_INCOMPLETE", "the PNG file has no picture in it")
			}
			return info
		}
	}
}

func probeJPEG(b []byte) *lane.ImageTaken {
	info := &lane.ImageTaken{MediaType: "image/jpeg", Depth: 8, Lossy: true}
	pos := 2
	pixels := false
	for {
		marker, ok := nextMarker(b, &pos)
		switch {
		case !ok:
			return damage(info, "IMG_INCOMPLETE", "the JPEG file is cut off")
		case marker == 0xD9: // EOI
			if info.Width == 0 || !pixels {
				return damage(info, "IMG_INCOMPLETE", "the JPEG file has no picture in it")
			}
			return info
		case marker == 0x01 || marker >= 0xD0 && marker <= 0xD7: // TEM, RSTn: no length
			continue
		}
		if len(b)-pos < 2 {
			return damage(info, "IMG_INCOMPLETE", "the JPEG file is cut off")
		}
		n := int(binary.BigEndian.Uint16(b[pos:]))
		if n < 2 || n > len(b)-pos {
			return damage(info, "IMG_INCOMPLETE", "the JPEG file is cut off")
		}
		segment := b[pos : pos+n]
		pos += n
		pixels = pixels || marker == 0xDA // SOS: entropy-coded data follows
		// SOFn, except DHT, JPG and DAC, which share the range.
		if marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC {
			if len(segment) < 7 {
				return damage(info, "IMG_INCOMPLETE", "the JPEG header is damaged")
			}
			info.Depth = int(segment[2])
			info.Height = int(binary.BigEndian.Uint16(segment[3:]))
			info.Width = int(binary.BigEndian.Uint16(segment[5:]))
			if !checkSize(info) {
				return info
			}
		}
	}
}

// nextMarker skips entropy-coded data and fill bytes to the next marker.
func nextMarker(b []byte, pos *int) (byte, bool) {
	for {
		i := bytes.IndexByte(b[min(*pos, len(b)):], 0xFF)
		if i < 0 {
			return 0, false
		}
		*pos += i + 1
		for *pos < len(b) && b[*pos] == 0xFF {
			*pos++
		}
		if *pos >= len(b) {
			return 0, false
		}
		m := b[*pos]
		*pos++
		if m != 0 { // FF 00 is a stuffed data byte
			return m, true
		}
	}
}
