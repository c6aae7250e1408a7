// Package runtime is how Barque talks to a container runtime. The agent decides what should
// run; a runtime that speaks the Container Runtime Interface (CRI, k8s.io/cri-api) runs it.
//
// A [Client] holds one connection to a CRI socket: containerd's, which Barque brings along and
// runs as a process of its own (package containerd), or that of a containerd or CRI-O the
// machine already has. Its methods are CRI's own, with a time limit on every call and errors
// that name the operation and the object; whoever uses them declares the few that he needs.
// [Client.Events] tells of containers that start and end, so that nobody has to list them over
// and over.
//
// What stands beside it:
//
//   - bundle: the second programs (containerd, its shim, runc, the CNI plugin), embedded in
//     ours and unpacked into the data directory;
//   - containerd: the daemon as a service: configured, started, adopted, watched, stopped;
//   - images: image archives, made by code, imported, listed and removed;
//   - cgroup: the control groups that stand above containers, one a pod and one a QoS class.
package runtime
