package apiserver

import (
	"context"
	"encoding/json"
	"fmt"

	openapiv2 "github.com/google/gnostic-models/openapiv2"
	openapiv3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/conversion"

	"barque.dev/internal/admission/bound"
	"barque.dev/internal/apiserver/custom"
	"barque.dev/internal/apiserver/relay"
	"barque.dev/internal/client"
)

// openCustom starts to serve custom resources.
func (s *Server) openCustom() error {
	resolver := relay.NewResolver(relay.Image(client.NewInProcess(client.Config{Tables: s.registry})))
	converters, err := conversion.NewCRConverterFactory(resolver, bound.Answers(nil))
	if err != nil {
		return fmt.Errorf("custom resources: conversion webhooks: %w", err)
	}
	s.custom, err = custom.NewRegistrar(custom.Config{Resources: s.registry, Converters: converters, Changed: s.describe, Log: s.log})
	if err != nil {
		return err
	}
	s.describe()
	return nil
}

// followDefinitions serves what is defined, until ctx ends.
func (s *Server) followDefinitions(ctx context.Context) {
	if err := s.custom.Run(ctx); err != nil {
		s.log.Error("custom resources no longer follow their definitions", "error", err)
	}
}

// describe makes the documents of what is served now.
func (s *Server) describe() {
	if s.custom == nil {
		return // it is registering what it finds at the start
	}
	s.catalog.Store(newCatalog(s.registry.Resources(), s.custom.Definitions(), s.specs, s.catalog.Load(), s.log))
}

// resolve finds a custom resource once more if this server may be behind: it knows of no such resource while another
// server may, or its definition has just changed.
func (s *Server) resolve(ctx context.Context, c *call) error {
	if c.resource != nil && c.resource.Custom == nil {
		return nil
	}
	gvr := gvrOf(c.info)
	if c.resource == nil {
		if err := s.registry.CatchUp(ctx); err != nil {
			return err
		}
	}
	if err := s.custom.Await(ctx, gvr.GroupResource().String()); err != nil {
		return err
	}
	c.resource, _ = s.registry.Lookup(gvr)
	return nil
}

// settle waits until every definition that any server knows of is described: whoever asks for what this server does
// not know deserves a second look.
func (s *Server) settle(ctx context.Context) error {
	if err := s.registry.CatchUp(ctx); err != nil {
		return err
	}
	return s.custom.AwaitAll(ctx)
}

// protobufV2 is what custom resources add to the version 2 document in protobuf.
func protobufV2(parts custom.PartsV2) ([]byte, error) {
	doc, err := json.Marshal(map[string]any{
		"swagger": "2.0", "info": map[string]any{"title": "x", "version": "x"}, "paths": parts.Paths, "definitions": parts.Definitions,
	})
	if err != nil {
		return nil, fmt.Errorf("encode OpenAPI: %w", err)
	}
	whole, err := openapiv2.ParseDocument(doc)
	if err != nil {
		return nil, fmt.Errorf("encode OpenAPI: %w", err)
	}
	return proto.Marshal(&openapiv2.Document{Paths: whole.Paths, Definitions: whole.Definitions})
}

// protobufV3 is a version 3 document in protobuf.
func protobufV3(doc []byte) ([]byte, error) {
	whole, err := openapiv3.ParseDocument(doc)
	if err != nil {
		return nil, fmt.Errorf("encode OpenAPI: %w", err)
	}
	return proto.Marshal(whole)
}
