package apiserver

// deepStack is how much stack a request that writes comes to need at least, in bytes: validation and the encoders go deep.
const deepStack = 24 << 10

// deepen makes the goroutine's stack large enough for a write. The goroutine of a request begins with a few KB, and would
// be given twice as much three times over, deeper each time: all frames so far are copied then, and every pointer to them is
// adjusted, which adds up to a tenth of what it takes to create a pod. Here, near the bottom, there is next to nothing
// to copy.
//
// The array is part of the function's frame whether or not it is used, and costs nothing if it is not. Whether it is, is for the
// compiler not to know: size is the length of a word.
//
//go:noinline
func deepen(size int) byte {
	if size < deepStack {
		return 0
	}
	var room [deepStack]byte
	room[size%deepStack] = byte(size)
	return room[(size*31)%deepStack]
}
