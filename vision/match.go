package vision

import "math/bits"

// ratio is the limit of Lowe's test: the best match must be this much nearer than
// the second best.
const ratio = 0.8

// MatchFeatures pairs the features of a face with those of a photograph: nearest
// neighbour in Hamming distance, kept when it is clearly nearer than the second,
// and only once for each feature of the face.
func MatchFeatures(face, photo *Features) []Pair {
	type best struct {
		photo, distance int
	}
	chosen := map[int]best{} // by feature of the face
	for i, d := range photo.Descriptors {
		first, second, at := 257, 257, -1
		for j, r := range face.Descriptors {
			n := bits.OnesCount64(d[0]^r[0]) + bits.OnesCount64(d[1]^r[1]) + bits.OnesCount64(d[2]^r[2]) + bits.OnesCount64(d[3]^r[3])
			if n < first {
				first, second, at = n, first, j
			} else if n < second {
				second = n
			}
		}
		if at < 0 || first > 80 || float64(first) > ratio*float64(second) {
			continue
		}
		if have, ok := chosen[at]; !ok || first < have.distance {
			chosen[at] = best{i, first}
		}
	}
	pairs := make([]Pair, 0, len(chosen))
	for j := range face.Points { // in order: the same input gives the same pairs
		if b, ok := chosen[j]; ok {
			pairs = append(pairs, Pair{Face: face.Points[j], Photo: photo.Points[b.photo]})
		}
	}
	return pairs
}
