module inspectd.org/inspectd

go 1.26.0

require github.com/gowebpki/jcs v1.0.2

require (
	go.etcd.io/bbolt v1.5.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)
