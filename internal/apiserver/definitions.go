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
	return err
}

// followDefinitions serves what is defined, until ctx ends.
func (s *Server) followDefinitions(ctx context.Context) {
	if err := s.custom.Run(ctx); err != nil {
		s.log.Error("custom resources no longer follow their definitions", "error", err)
	}
}

// describe makes the documents of what is served now.
func (s *Server) describe() {
	if s.custom == nil || s.aggregator == nil {
		return // they are taking in what there is at the start
	}
	s.describing.Lock()
	defer s.describing.Unlock()
	of := contents{resources: s.registry.Resources(), crds: s.custom.Definitions(), priorities: s.aggregator.Priorities()}
	for _, b := range s.aggregator.Backends() {
		of.remotes = append(of.remotes, remote{b.GroupVersion(), b.Description()})
	}
	s.catalog.Store(newCatalog(of, s.specs, s.catalog.Load(), s.log))
}

// resolve finds a custom resource once more if this server may be behind: it knows of no such resource while another
// server may, or its definition has just changed. Of what it does not know, it has then also seen whether an aggregated
// API server has it.
func (s *Server) resolve(ctx context.Context, c *call) error {
	if c.resource != nil && c.resource.Custom == nil {
		return nil
	}
	gvr := gvrOf(c.info)
	if c.resource == nil {
		if err := s.registry.CatchUp(ctx); err != nil {
			return err
		}
		if err := s.aggregator.Await(ctx, gvr.Version+"."+gvr.Group); err != nil {
			return err
		}
	}
	if err := s.custom.Await(ctx, gvr.GroupResource().String()); err != nil {
		return err
	}
	c.resource, _ = s.registry.Lookup(gvr)
	return nil
}

// settle waits until everything that any server knows of is described: whoever asks for what this server does not know
// deserves a second look.
func (s *Server) settle(ctx context.Context) error {
	if err := s.registry.CatchUp(ctx); err != nil {
		return err
	}
	return s.described(ctx)
}

// described waits until what the image holds of definitions and APIServices is described.
func (s *Server) described(ctx context.Context) error {
	if err := s.custom.AwaitAll(ctx); err != nil {
		return err
	}
	return s.aggregator.AwaitAll(ctx)
}

// protobufV2 is what paths and schemas, by name, add to the version 2 document in protobuf.
func protobufV2(paths, definitions any) ([]byte, error) {
	doc, err := json.Marshal(map[string]any{
		"swagger": "2.0", "info": map[string]any{"title": "x", "version": "x"}, "paths": paths, "definitions": definitions,
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
