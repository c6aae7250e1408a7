package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"barque.dev/internal/local"
	"barque.dev/internal/pki"
)

// access is how a command finds the cluster it speaks to.
type access struct {
	kubeconfig string
}

func (a *access) flags(f *pflag.FlagSet) {
	f.StringVar(&a.kubeconfig, "kubeconfig", "", "kubeconfig `FILE`; by default $KUBECONFIG, or the one that `barque up` or a server here wrote")
}

// path finds the kubeconfig file.
func (a *access) path() (string, error) {
	candidates := []string{a.kubeconfig}
	if a.kubeconfig == "" {
		candidates = filepath.SplitList(os.Getenv("KUBECONFIG"))
	}
	if len(candidates) == 0 {
		candidates = written()
	}
	for _, c := range candidates {
		if _, err := os.Stat(c); err == nil {
			return c, nil
		}
	}
	return "", fmt.Errorf("no cluster found (there is no %s): start one with `barque up`, or name its kubeconfig with --kubeconfig", strings.Join(candidates, " and no "))
}

// written are the kubeconfigs that `barque up`, and a server as the documentation starts it,
// write.
func written() []string {
	return []string{filepath.Join(local.DefaultDir, "kubeconfig"), filepath.Join(defaultServerDir, "kubeconfig")}
}

// The data directories that the documentation and `barque token create` name.
const (
	defaultServerDir = "/var/lib/barque-server"
	defaultAgentDir  = "/var/lib/barque-agent"
)

// client speaks to the cluster.
func (a *access) client() (kubernetes.Interface, *rest.Config, error) {
	path, err := a.path()
	if err != nil {
		return nil, nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, nil, fmt.Errorf("read kubeconfig %s: %w", path, err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, nil, fmt.Errorf("use kubeconfig %s: %w", path, err)
	}
	return client, config, nil
}

func newKubeconfig(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print the administrator's kubeconfig, or merge it into yours",
		Example: `  sudo barque kubeconfig > cluster.yaml
  sudo -E barque kubeconfig --merge --name home`,
		Args: noArgs,
	}
	var a access
	var merge bool
	var name string
	a.flags(cmd.Flags())
	cmd.Flags().BoolVar(&merge, "merge", false, "add the cluster to your own kubeconfig ($KUBECONFIG, or ~/.kube/config) and make it the current one")
	cmd.Flags().StringVar(&name, "name", "barque", "`name` of the cluster, user and context when merging")
	cmd.RunE = func(*cobra.Command, []string) error {
		if merge {
			return mergeKubeconfig(s, a, name)
		}
		path, err := a.path()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read the kubeconfig: %w", err)
		}
		_, err = s.Out.Write(data)
		return err
	}
	return cmd
}

// mergeKubeconfig adds one cluster to the user's own file, replacing what has its name.
func mergeKubeconfig(s Streams, a access, name string) error {
	if a.kubeconfig == "" {
		// $KUBECONFIG is the target of a merge, not its source.
		for _, path := range written() {
			if exists(path) {
				a.kubeconfig = path
				break
			}
		}
	}
	if a.kubeconfig == "" {
		return errors.New("no cluster found here: name the kubeconfig to merge with --kubeconfig")
	}
	from, err := clientcmd.LoadFromFile(a.kubeconfig)
	if err != nil {
		return fmt.Errorf("--kubeconfig %s can't be read: %w", a.kubeconfig, err)
	}
	current := from.Contexts[from.CurrentContext]
	if current == nil || from.Clusters[current.Cluster] == nil || from.AuthInfos[current.AuthInfo] == nil {
		return fmt.Errorf("--kubeconfig %s has no current context with a cluster and a user: name another", a.kubeconfig)
	}
	add := clientcmdapi.NewConfig()
	add.Clusters[name] = from.Clusters[current.Cluster]
	add.AuthInfos[name] = from.AuthInfos[current.AuthInfo]
	add.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name, Namespace: current.Namespace}
	add.CurrentContext = name
	target := clientcmd.NewDefaultPathOptions().GetDefaultFilename()
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return fmt.Errorf("make the directory of your kubeconfig: %w", err)
	}
	if err := pki.Merge(target, add); err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.Out, "context %q is now the current one in %s\n", name, target)
	return err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
