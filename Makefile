# Everything a fresh Debian 12 with Go, git and make needs is installed by the
# targets that need it.
TAGS    := gocv_specific_modules,gocv_features2d,gocv_calib3d
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.1.0)
PKGS    := ./cmd/... ./agent/... ./devices/... ./queue/... ./vision/...
# OpenCV's pkg-config names 55 libraries; the worker needs five.
export CGO_LDFLAGS := -Wl,--as-needed
# Tests find the worker here, and fail where a facility they need is missing.
export INSPECTD_VISION := $(CURDIR)/bin/inspectd-vision
APT_BUILD := gcc g++ pkg-config libopencv-dev
APT_TEST  := mosquitto

.PHONY: all build demo test lint fuzz bench crash packs deps deps-test clean

all: build

deps:
	@.ci/install $(APT_BUILD)

deps-test: deps
	@.ci/install $(APT_TEST)

build: deps
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/inspectd ./cmd/inspectd
	go build -trimpath -ldflags "-s -w" -tags $(TAGS) -o bin/inspectd-vision ./cmd/inspectd-vision

# A whole lane on this machine: broker, headquarters, devices, and the real agent.
demo: build
	./bin/inspectd simulate lane --listen 127.0.0.1:7780

test: deps-test build
	INSPECTD_REQUIRE=all go test -race -tags $(TAGS) -timeout 10m $(PKGS)

lint:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	go vet -tags $(TAGS) $(PKGS)
	go tool staticcheck -tags $(TAGS) $(PKGS)
	GOFLAGS=-tags=$(TAGS) go mod tidy -diff
	go test -count=1 -run TestImports ./agent

# Every decoder for FUZZTIME on hostile input.
FUZZTIME := 20s
fuzz:
	go test -run '^$$' -fuzz FuzzParse -fuzztime $(FUZZTIME) ./devices/label
	go test -run '^$$' -fuzz FuzzRead -fuzztime $(FUZZTIME) ./devices/spectrum
	go test -run '^$$' -fuzz FuzzDecode -fuzztime $(FUZZTIME) ./devices
	go test -run '^$$' -fuzz FuzzProbeImage -fuzztime $(FUZZTIME) ./devices
	go test -run '^$$' -fuzz FuzzConn -fuzztime $(FUZZTIME) ./devices
	go test -run '^$$' -fuzz FuzzConfig -fuzztime $(FUZZTIME) ./agent
	go test -run '^$$' -fuzz FuzzFrame -fuzztime $(FUZZTIME) ./vision

# Intake and vision beside their floors: append with fdatasync, bare OpenCV calls.
bench: build
	go test -run '^$$' -bench . -benchtime 2s ./queue ./devices/label
	go test -run '^$$' -bench . -benchtime 2s -tags $(TAGS) ./vision/...

# Kills the real daemon KILLS times at random and compares with the stream.
KILLS := 100
crash: deps-test build
	INSPECTD_REQUIRE=all INSPECTD_KILLS=$(KILLS) go test -count=1 -v -run TestKilled ./cmd/inspectd

# Draws the reference pack of the demonstration anew.
packs: build
	rm -rf testdata/packs/fictional/fakes
	./bin/inspectd simulate pack testdata/packs/fictional

clean:
	rm -rf bin
