package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
)

// described is what the source of Kubernetes' generated definitions says about a schema beyond the published documents:
// the values of enumerations, and the descriptions that tell what they mean. The source is read, not imported: with it
// would come every module of Kubernetes.
type described struct {
	description       string
	enum              []any
	properties        map[string]*described
	items, additional *described
}

// definitions are read from the generated source; keys are names in documents, such as
// io.k8s.api.apps.v1.DaemonSetUpdateStrategy.
func definitions(source string) (map[string]*described, error) {
	file, err := parser.ParseFile(token.NewFileSet(), source, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	found := map[string]*described{}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		name := model(f.Name.Name)
		if name == "" || len(f.Body.List) == 0 {
			continue
		}
		returned, ok := f.Body.List[0].(*ast.ReturnStmt)
		if !ok || len(returned.Results) != 1 {
			return nil, fmt.Errorf("%s does not return a definition", f.Name.Name)
		}
		schema := &described{}
		schema.read(returned.Results[0])
		found[name] = schema
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s has no definitions", source)
	}
	return found, nil
}

// model is the name that documents give to what a function of the source defines; "" for types that have no enumerations.
func model(function string) string {
	for prefix, module := range map[string]string{
		"schema_k8sio_api_": "io.k8s.api.", "schema_pkg_apis_apiextensions_": "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.",
	} {
		if name, ok := strings.CutPrefix(function, prefix); ok {
			return module + strings.ReplaceAll(name, "_", ".")
		}
	}
	return ""
}

// read takes over what a composite literal says, such as a spec.Schema or its spec.SchemaProps.
func (d *described) read(e ast.Expr) {
	if p, ok := e.(*ast.UnaryExpr); ok {
		e = p.X
	}
	literal, ok := e.(*ast.CompositeLit)
	if !ok {
		return
	}
	for _, element := range literal.Elts {
		pair, ok := element.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		key, _ := pair.Key.(*ast.Ident)
		if key == nil {
			continue
		}
		switch key.Name {
		case "Schema", "SchemaProps":
			d.read(pair.Value)
		case "Description":
			d.description = text(pair.Value)
		case "Enum":
			for _, value := range elements(pair.Value) {
				d.enum = append(d.enum, text(value))
			}
		case "Properties":
			d.properties = map[string]*described{}
			for _, element := range elements(pair.Value) {
				if property, ok := element.(*ast.KeyValueExpr); ok {
					part := &described{}
					part.read(property.Value)
					d.properties[text(property.Key)] = part
				}
			}
		case "Items":
			d.items = &described{}
			d.items.read(pair.Value)
		case "AdditionalProperties":
			d.additional = &described{}
			d.additional.read(pair.Value)
		}
	}
}

func elements(e ast.Expr) []ast.Expr {
	literal, ok := e.(*ast.CompositeLit)
	if !ok {
		return nil
	}
	return literal.Elts
}

// text is a string literal's value.
func text(e ast.Expr) string {
	literal, ok := e.(*ast.BasicLit)
	if !ok {
		return ""
	}
	s, err := strconv.Unquote(literal.Value)
	if err != nil {
		return ""
	}
	return s
}
