package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// errUsage marks an error of the command line itself.
type errUsage struct{ error }

func (e errUsage) Unwrap() error { return e.error }

// errExit is a command that has said what is wrong by itself.
type errExit int

func (e errExit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// flagError says what is wrong with a flag, and where to read about it.
func flagError(cmd *cobra.Command, err error) error {
	return errUsage{fmt.Errorf("%w (see `%s --help`)", plainFlagError(err), cmd.CommandPath())}
}

// plainFlagError is an error of pflag's without the names of Go's functions.
func plainFlagError(err error) error {
	var invalid *pflag.InvalidValueError
	var unknown *pflag.NotExistError
	var missing *pflag.ValueRequiredError
	switch {
	case errors.As(err, &invalid):
		name := "--" + invalid.GetFlag().Name
		return fmt.Errorf("%s %q: give %s", name, invalid.GetValue(), wanted(invalid.GetFlag()))
	case errors.As(err, &unknown):
		return fmt.Errorf("there is no flag %s", dashed(unknown.GetSpecifiedName()))
	case errors.As(err, &missing):
		return fmt.Errorf("--%s: give %s", missing.GetFlag().Name, wanted(missing.GetFlag()))
	}
	return err
}

func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// wanted names what a flag takes.
func wanted(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "int", "int64":
		return "a whole number"
	case "bool":
		return "true or false"
	case "duration":
		return "a time such as 500ms, 30s or 24h"
	case "string", "stringSlice", "stringArray", "pairs":
		what, _ := pflag.UnquoteUsage(f)
		return "a " + strings.ToLower(what)
	}
	if what, _ := pflag.UnquoteUsage(f); what == "range" {
		return "a range such as 10.42.0.0/16"
	}
	return "an IP address such as 192.0.2.10"
}
