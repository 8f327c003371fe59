// Package testdata carries the scenarios and the reference pack of the
// demonstration lane, for tests and for 'inspectd simulate'.
package testdata

import "embed"

// Files holds scenarios/*.yaml and packs/*.
//
//go:embed scenarios packs
var Files embed.FS
