//go:build race

package apiserver_test

// raceFactor is how much more is allocated with the race detector, which drops what pools keep.
const raceFactor = 20
