package snapshot

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// A Name is that of a snapshot's file. It tells what there is to choose by.
type Name struct {
	// Time is when the snapshot was taken, to the second, by the server's clock.
	Time time.Time
	// Cluster is the beginning of the hash of the cluster's authority.
	Cluster string
	// Revision is etcd's newest in it.
	Revision int64
	// Scheduled snapshots are removed as newer ones come; others stay.
	Scheduled bool
	// Server took it; a very long name is cut.
	Server string
}

// maxServer bounds a server's name within a file's, which has at most 255 bytes.
const maxServer = 150

func shortServer(name string) string { return name[:min(len(name), maxServer)] }

const (
	timeFormat = "20060102T150405Z"
	// clusterDigits is how much of the hash of the cluster's authority is in a name.
	clusterDigits = 8
)

var nameForm = regexp.MustCompile(`^barque-(\d{8}T\d{6}Z)-([0-9a-f]{8})-r(\d{1,18})-(auto|saved)-([a-z0-9][-a-z0-9.]*)\.tar$`)

// String is the file's name. Names sort by time.
func (n Name) String() string {
	why := "saved"
	if n.Scheduled {
		why = "auto"
	}
	return fmt.Sprintf("barque-%s-%s-r%d-%s-%s.tar", n.Time.UTC().Format(timeFormat), n.Cluster, n.Revision, why, n.Server)
}

// ParseName reads a file's name, without its directory; false if it is not that of a snapshot.
func ParseName(file string) (Name, bool) {
	m := nameForm.FindStringSubmatch(file)
	if m == nil {
		return Name{}, false
	}
	at, err := time.Parse(timeFormat, m[1])
	if err != nil {
		return Name{}, false
	}
	revision, err := strconv.ParseInt(m[3], 10, 64)
	if err != nil {
		return Name{}, false
	}
	return Name{Time: at, Cluster: m[2], Revision: revision, Scheduled: m[4] == "auto", Server: m[5]}, true
}

// ownOf are the scheduled snapshots of a list that a server took of a cluster, which is told as names do.
func ownOf(list []Info, server, cluster string) []Info {
	var own []Info
	for _, i := range list {
		if n, ok := ParseName(i.File); ok && n.Scheduled && n.Server == shortServer(server) && n.Cluster == cluster {
			own = append(own, i)
		}
	}
	return own
}

// older are all but the newest so many of a list, which is sorted the newest first.
func older(list []Info, keep int) []Info { return list[min(keep, len(list)):] }

// byAge sorts the oldest first. Of the same second, the greater revision is newer.
func byAge(a, b Name) int {
	return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Revision, b.Revision), cmp.Compare(a.Server, b.Server))
}

// turn is the first moment after last at which it is a server's turn, who is the rank-th of so many: each has one
// every so often, and they are spread evenly. Clocks need not agree on more than the hour.
func turn(last time.Time, every time.Duration, rank, of int) time.Time {
	at := last.Truncate(every).Add(every * time.Duration(rank) / time.Duration(of))
	if !at.After(last) {
		at = at.Add(every)
	}
	return at
}

// Newer sorts the newest first.
func Newer(a, b Info) int {
	return cmp.Or(b.Time.Compare(a.Time), cmp.Compare(b.Revision, a.Revision), cmp.Compare(a.File, b.File))
}
