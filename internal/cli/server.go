package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"barque.dev/internal/agent/image"
	"barque.dev/internal/local"
	"barque.dev/internal/node"
)

func newServer(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "server --data-dir DIR",
		Short: "Run a master: found a cluster, or join one with --join and --token",
		Example: `  sudo barque server --data-dir /var/lib/barque-server --vip 192.0.2.10
  sudo barque server --data-dir /var/lib/barque-server --join https://192.0.2.10:6443 --token bq1.…
  sudo barque server --data-dir /var/lib/barque-witness --join https://192.0.2.10:6443 --token bq1.… --witness
  barque server --data-dir ./control-plane --disable agent --bind-address 127.0.0.1
  sudo barque server --config /etc/barque/server.yaml        # "vip: 192.0.2.10" and so on
  barque server list                                         # who there is; "remove" takes out one that is lost`,
		Args: noArgs,
	}
	var cfg node.ServerConfig
	var level string
	var disable []string
	flags := cmd.Flags()
	commonFlags(flags, &cfg.Common, &level)
	flags.TextVar(&cfg.AdvertiseAddress, "advertise-address", netip.Addr{}, "this machine's `IP` for the others; by default the one of the default route")
	flags.TextVar(&cfg.BindAddress, "bind-address", netip.IPv4Unspecified(), "`IP` to listen on")
	flags.IntVar(&cfg.HTTPSPort, "https-port", node.DefaultHTTPSPort, "`port` of the API")
	flags.IntVar(&cfg.EtcdPeerPort, "etcd-peer-port", 2380, "`port` of etcd for its peers")
	flags.IntVar(&cfg.EtcdClientPort, "etcd-client-port", 0, "`port` on the loopback address for etcd's clients, such as etcdctl; 0 for none")
	flags.StringVar(&cfg.Join, "join", "", "`URL` of any server of the cluster to join")
	flags.BoolVar(&cfg.Witness, "witness", false, "be a vote and nothing else, beside two servers: no API, no scheduler, no node")
	entranceFlags(flags, &cfg)
	flags.StringSliceVar(&disable, "disable", nil, "what not to run: `agent`, scheduler, controllers")
	flags.StringSliceVar(&cfg.DisableAdmission, "disable-admission-plugins", nil, "admission `plugins` to leave out on this server, such as ServiceAccount; without it, all that stock has on by default see every change")
	flags.StringSliceVar(&cfg.EtcdEndpoints, "etcd-endpoints", nil, "`URL`s of an etcd of yours, instead of the embedded one")
	flags.StringVar(&cfg.EtcdCA, "etcd-cafile", "", "CA `FILE` of your etcd")
	flags.StringVar(&cfg.EtcdCert, "etcd-certfile", "", "client certificate `FILE` for your etcd")
	flags.StringVar(&cfg.EtcdKey, "etcd-keyfile", "", "client key `FILE` for your etcd")
	flags.StringVar(&cfg.EncryptionConfig, "encryption-provider-config", "",
		"`FILE` with an EncryptionConfiguration that says how objects are encrypted in etcd; Secrets that it does not name, all without it, are with keys of the cluster's own")
	flags.BoolVar(&cfg.EncryptionReload, "encryption-provider-config-automatic-reload", false, "follow changes of --encryption-provider-config")
	flags.TextVar(&cfg.ClusterCIDR, "cluster-cidr", netip.MustParsePrefix(node.DefaultClusterCIDR), "`range` of the pods' addresses")
	flags.TextVar(&cfg.ServiceCIDR, "service-cidr", netip.MustParsePrefix(node.DefaultServiceCIDR), "`range` of the services' addresses")
	flags.TextVar(&cfg.ClusterDNS, "cluster-dns", netip.MustParseAddr(node.DefaultClusterDNS), "`IP` of the cluster's DNS, in --service-cidr")
	flags.StringVar(&cfg.ClusterDomain, "cluster-domain", node.DefaultClusterDomain, "`suffix` of the cluster's DNS names")
	flags.StringSliceVar(&cfg.TLSNames, "tls-san", nil, "further `names` or IPs for the API's certificate")
	flags.DurationVar(&cfg.CertificateLifetime, "certificate-lifetime", 0,
		"how long the certificates are valid that this server issues, all of which are renewed when a third of that is left; 0 is 30 days for its own, a year for nodes and the kubeconfig")
	flags.DurationVar(&cfg.NodeGrace, "node-monitor-grace-period", node.DefaultNodeGrace,
		"how long a node may be silent, machine and all, before it is called not ready; a machine that is surely gone is noticed much sooner")
	removalFlags(flags, &cfg)
	fair := flags.Bool("enable-priority-and-fairness", true, "serve requests by priority and fairness (FlowSchemas and PriorityLevelConfigurations); without it, who comes first is served first")
	flags.Int64Var(&cfg.Requests.Reads, "max-requests-inflight", node.DefaultRequests, "how many `requests` that read are answered at a time; with priority and fairness, the sum of this and the next is shared out")
	flags.Int64Var(&cfg.Requests.Writes, "max-mutating-requests-inflight", node.DefaultMutatingRequests, "how many `requests` that write are answered at a time")
	accessFlags(flags, &cfg.Access)
	auditFlags(flags, &cfg.Audit)
	flags.DurationVar(&cfg.Snapshots.Every, "snapshot-every", node.DefaultSnapshotEvery, "how often this server takes a snapshot; the servers take turns; 0 for never")
	flags.IntVar(&cfg.Snapshots.Keep, "snapshot-keep", node.DefaultSnapshotKeep, "how many of this server's scheduled `snapshots` stay; those of `barque snapshot save` stay all; 0, with a bucket, for none that is there")
	flags.StringVar(&cfg.Snapshots.Dir, "snapshot-dir", "", "`DIR` that holds snapshots; by default snapshots in --data-dir, which is lost with the disk")
	bucketFlags(flags, &cfg.Snapshots)
	flags.StringVar(&cfg.TracingFile, "tracing-config-file", "", "`FILE` with a TracingConfiguration, which says where traces of requests go to; without it nothing is traced")
	configFlag(cmd)
	cmd.AddCommand(newServerList(s), newServerRemove(s))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		for _, d := range disable {
			part, ok := map[string]*bool{"agent": &cfg.DisableAgent, "scheduler": &cfg.DisableScheduler, "controllers": &cfg.DisableControllers}[d]
			if !ok {
				return errUsage{fmt.Errorf("--disable %q: agent, scheduler and controllers can be disabled", d)}
			}
			*part = true
		}
		cfg.Requests.Plain = !*fair
		var err error
		if cfg.Log, err = newLogger(s.Err, level); err != nil {
			return err
		}
		if err := cfg.Complete(); err != nil {
			return errUsage{err}
		}
		err = node.RunServer(cmd.Context(), cfg, func() { cfg.Log.Info("server is ready", "node", cfg.NodeName) })
		if errors.Is(err, node.ErrAgain) {
			return again()
		}
		return err
	}
	return cmd
}

// bucketFlags say which bucket snapshots are copied to. Keys are no flags: a command line is seen by all.
func bucketFlags(flags *pflag.FlagSet, o *node.SnapshotOptions) {
	flags.StringVar(&o.Bucket.Bucket, "snapshot-s3-bucket", "", "`BUCKET` of S3 that scheduled snapshots are copied to")
	flags.StringVar(&o.Bucket.Prefix, "snapshot-s3-prefix", "", "`PREFIX` of their keys in the bucket, such as barque/prod/")
	flags.StringVar(&o.Bucket.Endpoint, "snapshot-s3-endpoint", "", "`URL` of what speaks S3's API, such as https://minio.example:9000; by default Amazon's")
	flags.StringVar(&o.Bucket.Region, "snapshot-s3-region", "", "the bucket's `region`; by default us-east-1")
	flags.StringVar(&o.Bucket.CA, "snapshot-s3-endpoint-ca", "", "`FILE` with the authorities that the endpoint's certificate may be of; by default the system's")
	flags.StringVar(&o.Bucket.Credentials, "snapshot-s3-credentials", "",
		"`FILE` with aws_access_key_id and aws_secret_access_key under [default]; without it AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment")
	flags.IntVar(&o.BucketKeep, "snapshot-s3-keep", node.DefaultSnapshotKeep, "how many of this server's `snapshots` stay in the bucket")
}

// again replaces this process by a new one of the same command line.
func again() error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	return fmt.Errorf("start %s again: %w", program, syscall.Exec(program, os.Args, os.Environ()))
}

func newAgent(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent --server URL --token TOKEN --data-dir DIR",
		Short: "Run a machine that only runs pods",
		Example: `  sudo barque agent --data-dir /var/lib/barque-agent --server https://192.0.2.10:6443 --token bq1.…
  sudo barque agent --data-dir /var/lib/barque-agent --server https://192.0.2.10:6443   # once it has joined`,
		Args: noArgs,
	}
	var cfg node.AgentConfig
	var level string
	flags := cmd.Flags()
	commonFlags(flags, &cfg.Common, &level)
	flags.StringVar(&cfg.Server, "server", "", "`URL` of any server of the cluster")
	flags.TextVar(&cfg.NodeIP, "node-ip", netip.Addr{}, "this machine's `IP`; by default the one that reaches the server")
	configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var err error
		if cfg.Log, err = newLogger(s.Err, level); err != nil {
			return err
		}
		if err := cfg.Complete(); err != nil {
			return errUsage{err}
		}
		err = node.RunAgent(cmd.Context(), cfg, func() { cfg.Log.Info("agent is ready", "node", cfg.NodeName) })
		if errors.Is(err, node.ErrAgain) {
			return again()
		}
		return err
	}
	return cmd
}

func commonFlags(flags *pflag.FlagSet, c *node.Common, level *string) {
	flags.StringVar(&c.DataDir, "data-dir", "", "`DIR` that holds this machine's data")
	flags.StringVar(&c.NodeName, "node-name", "", "this machine's `name`; by default the host name")
	flags.StringVar(&c.Token, "token", "", "`token` to join with, from `barque token create`")
	flags.StringVar(&c.RuntimeEndpoint, "container-runtime-endpoint", "", "`SOCKET` of a CRI runtime of yours, instead of the built-in containerd")
	flags.StringVar(&c.CgroupRoot, "cgroup-root", "/", "control `group` below which the pods' groups are made")
	flags.DurationVar(&c.FenceAfter, "fence-after", 2500*time.Millisecond,
		"how long this machine may be without any server before it stops pods that must not run twice")
	c.ImageGC = image.DefaultThresholds()
	flags.Int64Var(&c.ImageGC.High, "image-gc-high-threshold", c.ImageGC.High, "how full, in `percent`, the disk may get before unused images are removed; 100 for never")
	flags.Int64Var(&c.ImageGC.Low, "image-gc-low-threshold", c.ImageGC.Low, "how full, in `percent`, the disk may stay when unused images are removed")
	flags.StringVar(level, "log-level", "info", "debug, info, warn or error")
}

// entranceFlags say how clients find the servers, and are spread over them.
func entranceFlags(flags *pflag.FlagSet, c *node.ServerConfig) {
	flags.TextVar(&c.VIP, "vip", netip.Addr{}, "virtual `IP` that moves to a server that lives")
	flags.StringVar(&c.APIName, "api-dns-name", "", "`NAME[:PORT]` of your load balancer before the servers, or a DNS name with all their addresses: what clients are told, and what the certificates are for")
	flags.DurationVar(&c.ShutdownDelay, "shutdown-delay-duration", 0, "for how long the API goes on to answer when this server is told to stop, while /readyz fails: as long as your load balancer takes to see that")
	flags.DurationVar(&c.ConnectionAge, "connection-age", node.DefaultConnectionAge,
		"after how long a client's connection is told to go, at the latest twice that, so that clients spread over all servers anew; soon after a server has come; 0 is never")
}

// newMachine is how `barque up` starts its machines: it enters the machine's namespace and
// becomes `barque server` or `barque agent` there.
func newMachine(Streams) *cobra.Command {
	return &cobra.Command{
		Use:                "machine server|agent …",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if err := local.EnterMachine(os.Getenv); err != nil {
				return err
			}
			program, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			if len(args) == 0 {
				return errUsage{errors.New("`barque machine` is for `barque up`")}
			}
			return fmt.Errorf("run %s: %w", program, syscall.Exec(program, append([]string{"barque"}, args...), os.Environ()))
		},
	}
}
