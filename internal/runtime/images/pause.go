package images

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// PauseName is the image that pod sandboxes run: it holds a pod's namespaces open and does
// nothing.
const PauseName = "barque.dev/pause:1"

// Numbers of ELF files (System V ABI, chapters 4 and 5) and of the two architectures.
const (
	elfMachineAMD64 = 62
	elfMachineARM64 = 183
	elfHeaderSize   = 64
	elfProgramSize  = 56
	loadAddress     = 0x400000
)

// pauseCode returns machine code, without any operating system library, that tells the kernel
// to ignore SIGCHLD, and then sleeps for ever.
//
// Ignoring SIGCHLD makes the kernel reap children by itself, which matters when a pod shares
// one PID namespace and the program is everybody's stepfather. It needs no handlers to be
// stopped: as the first process of a PID namespace it is killed from outside, and elsewhere
// SIGTERM has its ordinary effect.
func pauseCode(arch string) (machine uint16, code []byte, err error) {
	// The argument of rt_sigaction(2) in the kernel's own form: SIG_IGN (1), no flags, no
	// restorer, an empty mask.
	action := make([]byte, 32)
	action[0] = 1
	switch arch {
	case "amd64":
		return elfMachineAMD64, append([]byte{
			0xb8, 13, 0, 0, 0, // mov eax, 13 (rt_sigaction)
			0xbf, 17, 0, 0, 0, // mov edi, 17 (SIGCHLD)
			0x48, 0x8d, 0x35, 23, 0, 0, 0, // lea rsi, [rip+23] (action)
			0x31, 0xd2, // xor edx, edx
			0x41, 0xba, 8, 0, 0, 0, // mov r10d, 8 (size of a signal mask)
			0x0f, 0x05, // syscall
			0xb8, 34, 0, 0, 0, // mov eax, 34 (pause)
			0x0f, 0x05, // syscall
			0xeb, 0xf7, // jmp to the mov before
			0, 0, 0, 0, // padding
		}, action...), nil
	case "arm64":
		return elfMachineARM64, append(words(
			0xd28010c8, // mov x8, 134 (rt_sigaction)
			0xd2800220, // mov x0, 17 (SIGCHLD)
			0x100001c1, // adr x1, +56 (action)
			0xd2800002, // mov x2, 0
			0xd2800103, // mov x3, 8 (size of a signal mask)
			0xd4000001, // svc 0
			0xd2800928, // mov x8, 73 (ppoll)
			0xd2800000, // mov x0, 0
			0xd2800001, // mov x1, 0
			0xd2800002, // mov x2, 0
			0xd2800003, // mov x3, 0
			0xd2800004, // mov x4, 0
			0xd4000001, // svc 0
			0x17fffff9, // b to the mov of 73
			0, 0,       // padding
		), action...), nil
	}
	return 0, nil, fmt.Errorf("no pause program for the architecture %s", arch)
}

// words lays instructions out as ARM stores them.
func words(instructions ...uint32) []byte {
	var out []byte
	for _, w := range instructions {
		out = binary.LittleEndian.AppendUint32(out, w)
	}
	return out
}

// pauseProgram returns the smallest ELF executable around pauseCode: one header, one segment.
func pauseProgram(arch string) ([]byte, error) {
	machine, code, err := pauseCode(arch)
	if err != nil {
		return nil, err
	}
	const start = elfHeaderSize + elfProgramSize
	size := uint64(start + len(code))
	le := binary.LittleEndian
	out := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	out = le.AppendUint16(out, 2) // an executable
	out = le.AppendUint16(out, machine)
	out = le.AppendUint32(out, 1)                 // version
	out = le.AppendUint64(out, loadAddress+start) // entry
	out = le.AppendUint64(out, elfHeaderSize)     // where the program header is
	out = le.AppendUint64(out, 0)                 // no section headers
	out = le.AppendUint32(out, 0)                 // flags
	for _, n := range []uint16{elfHeaderSize, elfProgramSize, 1, 0, 0, 0} {
		out = le.AppendUint16(out, n) // sizes and counts of headers
	}
	out = le.AppendUint32(out, 1) // a segment to load
	out = le.AppendUint32(out, 5) // readable, executable
	for _, n := range []uint64{0, loadAddress, loadAddress, size, size, 0x10000} {
		out = le.AppendUint64(out, n) // offset, addresses, sizes, alignment
	}
	return append(out, code...), nil
}

// PauseImage returns the pause image for this machine's architecture.
func PauseImage() (Image, error) {
	program, err := pauseProgram(runtime.GOARCH)
	if err != nil {
		return Image{}, err
	}
	return Image{
		Names:  []string{PauseName},
		Layers: []Layer{{{Path: "/pause", Mode: 0o755, Data: program}}},
		Config: ocispec.ImageConfig{Entrypoint: []string{"/pause"}, User: "65535:65535"},
	}, nil
}

// pauseArchive returns the pause image as an archive.
func pauseArchive() (io.Reader, error) {
	image, err := PauseImage()
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	if err := WriteArchive(&buf, image); err != nil {
		return nil, err
	}
	return &buf, nil
}
