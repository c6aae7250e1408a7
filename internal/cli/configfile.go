package cli

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"

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
			return errUsage{fmt.Errorf("--config %s can't be read (%w): name a YAML file of long flags", path, errors.Unwrap(err))}
		}
		if err := applyConfig(cmd.Flags(), data); err != nil {
			return errUsage{fmt.Errorf("--config %s: %w", path, err)}
		}
		return nil
	}
}

// applyConfig sets the flags that the command line left alone.
func applyConfig(flags *pflag.FlagSet, data []byte) error {
	var values map[string]any
	if err := yaml.UnmarshalStrict(data, &values); err != nil {
		return fmt.Errorf("it is no YAML map of long flags, such as \"data-dir: /srv/barque\" (%s)", yamlReason(err))
	}
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		flag := flags.Lookup(name)
		if flag == nil || name == "config" {
			return fmt.Errorf("there is no flag --%s: a key is a long flag's name without the dashes", name)
		}
		if flag.Changed {
			continue
		}
		if err := setFlag(flags, name, values[name]); err != nil {
			return err
		}
	}
	return nil
}

// yamlReason is what the parser found, without the steps that it took.
func yamlReason(err error) string {
	reason := err.Error()
	for _, step := range []string{"error converting YAML to JSON: ", "error unmarshaling JSON: ", "while decoding JSON: "} {
		reason = strings.TrimPrefix(reason, step)
	}
	if strings.HasPrefix(reason, "json: ") {
		return "it holds something else"
	}
	return reason
}

func setFlag(flags *pflag.FlagSet, name string, value any) error {
	items, ok := value.([]any)
	if !ok {
		items = []any{value}
	} else if _, slice := flags.Lookup(name).Value.(pflag.SliceValue); !slice {
		return fmt.Errorf("%s: give one value, not a list", name)
	}
	for _, item := range items {
		text := fmt.Sprint(item)
		switch item := item.(type) {
		case string, bool, int64:
		case float64:
			text = strconv.FormatFloat(item, 'f', -1, 64)
		default:
			return fmt.Errorf("%s: give a value or a list of values", name)
		}
		if err := flags.Set(name, text); err != nil {
			return plainFlagError(err)
		}
	}
	return nil
}
