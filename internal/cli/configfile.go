package cli

import (
	"fmt"
	"os"
	"sort"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

// configFlag adds --config and lets every long flag of cmd stand in that YAML file, under its
// name without the dashes; the command line wins.
func configFlag(cmd *cobra.Command) {
	var path string
	cmd.Flags().StringVar(&path, "config", "", "YAML file that holds long flags, such as `FILE` with \"data-dir: /srv/barque\"")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if path == "" {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read --config: %w", err)
		}
		if err := applyConfig(cmd.Flags(), data); err != nil {
			return fmt.Errorf("--config %s: %w", path, err)
		}
		return nil
	}
}

// applyConfig sets the flags that the command line left alone.
func applyConfig(flags *pflag.FlagSet, data []byte) error {
	var values map[string]any
	if err := yaml.UnmarshalStrict(data, &values); err != nil {
		return fmt.Errorf("not a YAML map of flags: %w", err)
	}
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		flag := flags.Lookup(name)
		if flag == nil || name == "config" {
			return fmt.Errorf("unknown key %q: use a long flag's name without the dashes", name)
		}
		if flag.Changed {
			continue
		}
		if err := setFlag(flags, name, values[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func setFlag(flags *pflag.FlagSet, name string, value any) error {
	items, ok := value.([]any)
	if !ok {
		items = []any{value}
	}
	for _, item := range items {
		switch item.(type) {
		case string, bool, float64, int64:
		default:
			return fmt.Errorf("%v is not a value or a list of values", item)
		}
		if err := flags.Set(name, fmt.Sprint(item)); err != nil {
			return err
		}
	}
	return nil
}
