// Package snapshot saves the state of a cluster into files from which the cluster can be made again when all
// servers are lost.
//
// A snapshot is a tar archive of four files, in this order:
//
//	manifest.json   what it is of: a [Manifest]
//	keys.json       the cluster's keys, without which nobody trusts the cluster and no Secret can be read
//	etcd.db         etcd's own snapshot, as `etcdctl snapshot save` writes it: any etcd can be made of it
//	SHA256SUMS      of the other three, as `sha256sum -c` reads it
//
// Whoever has the file has the cluster, as whoever has a server's disk.
//
// Each server has a [Keeper]. It takes snapshots of what its own member of etcd has applied, so that a snapshot costs the
// others nothing, and keeps them on its own disk; the servers take turns, so that together they have one more
// often than each alone, and whichever server is left has some. A snapshot is written under a temporary name,
// synced, read back and checked by opening it as etcd does, and only then gets its [Name], which says when it was
// taken, of which cluster, by which server, and at which revision.
//
// Scheduled ones are copied to a [Remote] as well, if there is one: a bucket (package bucket). That comes after they have their name, by
// a goroutine of its own, which compares what is here with what is there: nothing that goes wrong with a remote keeps a snapshot from being
// taken, and what it missed follows.
//
// [Unpack] reads a snapshot, also one that etcdctl, kubeadm's users or k3s made, and believes nothing that it did not
// compare with its checksum.
package snapshot
