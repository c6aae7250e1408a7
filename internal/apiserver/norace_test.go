//go:build !race

package apiserver_test

const raceFactor = 1
