package rbac

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	apirbac "barque.dev/internal/api/rbac"
)

// parallel is how many objects are reconciled at once: writes that wait together share etcd's
// group commit.
const parallel = 16

// Bootstrap makes sure that the policy's roles and bindings exist and hold at least the rules
// and subjects they should; users' additions stay, and objects annotated with
// rbac.authorization.kubernetes.io/autoupdate=false are left alone, as in stock Kubernetes. It
// is idempotent and may run on several servers at once. When all is well it writes nothing.
func Bootstrap(ctx context.Context, c client.Client, policy apirbac.Policy, log *slog.Logger) error {
	b := bootstrapper{client: c, log: log}
	if err := b.migrate(ctx, policy); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i := range policy.ClusterRoles {
		role := &policy.ClusterRoles[i]
		group.Go(func() error {
			return b.role(ctx, "ClusterRole", reconciliation.ClusterRoleRuleOwner{ClusterRole: role})
		})
	}
	for i := range policy.ClusterRoleBindings {
		binding := &policy.ClusterRoleBindings[i]
		group.Go(func() error {
			return b.binding(ctx, "ClusterRoleBinding", reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: binding})
		})
	}
	if err := b.namespaces(ctx, policy); err != nil {
		return errors.Join(err, group.Wait())
	}
	for i := range policy.Roles {
		role := &policy.Roles[i]
		group.Go(func() error { return b.role(ctx, "Role", reconciliation.RoleRuleOwner{Role: role}) })
	}
	for i := range policy.RoleBindings {
		binding := &policy.RoleBindings[i]
		group.Go(func() error {
			return b.binding(ctx, "RoleBinding", reconciliation.RoleBindingAdapter{RoleBinding: binding})
		})
	}
	return group.Wait()
}

type bootstrapper struct {
	client client.Client
	log    *slog.Logger
}

func transient(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsAlreadyExists(err)
}

func (b *bootstrapper) role(ctx context.Context, kind string, owner reconciliation.RuleOwner) error {
	options := reconciliation.ReconcileRoleOptions{Role: owner, Client: roleClient{ctx, b.client}, Confirm: true}
	err := retry.OnError(retry.DefaultBackoff, transient, func() error {
		result, err := options.Run()
		if err == nil {
			b.logged(kind, owner.GetName(), result.Operation, result.Protected)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("reconcile %s %s: %w", kind, owner.GetName(), err)
	}
	return nil
}

func (b *bootstrapper) binding(ctx context.Context, kind string, binding reconciliation.RoleBinding) error {
	options := reconciliation.ReconcileRoleBindingOptions{RoleBinding: binding, Client: bindingClient{ctx, b.client}, Confirm: true}
	err := retry.OnError(retry.DefaultBackoff, transient, func() error {
		result, err := options.Run()
		if err == nil {
			b.logged(kind, binding.GetName(), result.Operation, result.Protected)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("reconcile %s %s: %w", kind, binding.GetName(), err)
	}
	return nil
}

func (b *bootstrapper) logged(kind, name string, op reconciliation.ReconcileOperation, protected bool) {
	switch {
	case op == reconciliation.ReconcileNone:
	case protected:
		b.log.Warn("stock role lacks rules but is protected", "kind", kind, "name", name)
	default:
		b.log.Debug("stock role reconciled", "kind", kind, "name", name, "operation", op)
	}
}

// namespaces creates the namespaces of the policy's roles.
func (b *bootstrapper) namespaces(ctx context.Context, policy apirbac.Policy) error {
	wanted := map[string]bool{}
	for i := range policy.Roles {
		wanted[policy.Roles[i].Namespace] = true
	}
	for i := range policy.RoleBindings {
		wanted[policy.RoleBindings[i].Namespace] = true
	}
	for name := range wanted {
		var namespace corev1.Namespace
		err := b.client.Get(ctx, client.ObjectKey{Name: name}, &namespace)
		if apierrors.IsNotFound(err) {
			namespace = corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
			err = client.IgnoreAlreadyExists(b.client.Create(ctx, &namespace))
		}
		if err != nil {
			return fmt.Errorf("create namespace %s of stock roles: %w", name, err)
		}
	}
	return nil
}

// migrate carries what users changed in objects of old clusters over to their successors.
func (b *bootstrapper) migrate(ctx context.Context, policy apirbac.Policy) error {
	for from, to := range policy.Aggregated {
		var old, successor rbacv1.ClusterRole
		exists, err := b.exists(ctx, to, &successor)
		if err != nil {
			return err
		}
		if exists {
			continue
		}
		exists, err = b.exists(ctx, from, &old)
		if err != nil {
			return err
		}
		if !exists || old.AggregationRule != nil {
			continue
		}
		successor = rbacv1.ClusterRole{ObjectMeta: carried(to, &old.ObjectMeta), Rules: old.Rules}
		if err := client.IgnoreAlreadyExists(b.client.Create(ctx, &successor)); err != nil {
			return fmt.Errorf("migrate ClusterRole %s to %s: %w", from, to, err)
		}
	}
	for from, template := range policy.Split {
		var old, successor rbacv1.ClusterRoleBinding
		exists, err := b.exists(ctx, from, &old)
		if err != nil {
			return err
		}
		if !exists {
			continue
		}
		exists, err = b.exists(ctx, template.Name, &successor)
		if err != nil {
			return err
		}
		if exists {
			continue
		}
		successor = rbacv1.ClusterRoleBinding{
			ObjectMeta: carried(template.Name, &old.ObjectMeta), RoleRef: template.RoleRef, Subjects: old.Subjects,
		}
		if err := client.IgnoreAlreadyExists(b.client.Create(ctx, &successor)); err != nil {
			return fmt.Errorf("migrate ClusterRoleBinding %s to %s: %w", from, template.Name, err)
		}
	}
	return nil
}

func (b *bootstrapper) exists(ctx context.Context, name string, into client.Object) (bool, error) {
	err := b.client.Get(ctx, client.ObjectKey{Name: name}, into)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read stock role %s: %w", name, err)
	}
	return true, nil
}

func carried(name string, from *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Labels: from.Labels, Annotations: from.Annotations}
}

// roleClient gives roles of both scopes to the reconciliation, which knows no context.
type roleClient struct {
	ctx    context.Context
	client client.Client
}

func (r roleClient) Get(namespace, name string) (reconciliation.RuleOwner, error) {
	key := client.ObjectKey{Namespace: namespace, Name: name}
	if namespace != "" {
		var role rbacv1.Role
		err := r.client.Get(r.ctx, key, &role)
		return reconciliation.RoleRuleOwner{Role: &role}, err
	}
	var role rbacv1.ClusterRole
	err := r.client.Get(r.ctx, key, &role)
	return reconciliation.ClusterRoleRuleOwner{ClusterRole: &role}, err
}

func (r roleClient) Create(owner reconciliation.RuleOwner) (reconciliation.RuleOwner, error) {
	owner = owner.DeepCopyRuleOwner()
	obj, err := ownerObject(owner)
	if err != nil {
		return nil, err
	}
	return owner, r.client.Create(r.ctx, obj)
}

func (r roleClient) Update(owner reconciliation.RuleOwner) (reconciliation.RuleOwner, error) {
	owner = owner.DeepCopyRuleOwner()
	obj, err := ownerObject(owner)
	if err != nil {
		return nil, err
	}
	return owner, r.client.Update(r.ctx, obj)
}

func ownerObject(owner reconciliation.RuleOwner) (client.Object, error) {
	switch o := owner.(type) {
	case reconciliation.RoleRuleOwner:
		return o.Role, nil
	case reconciliation.ClusterRoleRuleOwner:
		return o.ClusterRole, nil
	}
	return nil, fmt.Errorf("a %T is no role", owner)
}

// bindingClient gives bindings of both scopes to the reconciliation.
type bindingClient struct {
	ctx    context.Context
	client client.Client
}

func (b bindingClient) Get(namespace, name string) (reconciliation.RoleBinding, error) {
	key := client.ObjectKey{Namespace: namespace, Name: name}
	if namespace != "" {
		var binding rbacv1.RoleBinding
		err := b.client.Get(b.ctx, key, &binding)
		return reconciliation.RoleBindingAdapter{RoleBinding: &binding}, err
	}
	var binding rbacv1.ClusterRoleBinding
	err := b.client.Get(b.ctx, key, &binding)
	return reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &binding}, err
}

func (b bindingClient) Delete(namespace, name string, uid types.UID) error {
	precondition := client.Preconditions{UID: &uid}
	if namespace != "" {
		return b.client.Delete(b.ctx, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}, precondition)
	}
	return b.client.Delete(b.ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}}, precondition)
}

func (b bindingClient) Create(binding reconciliation.RoleBinding) (reconciliation.RoleBinding, error) {
	binding = binding.DeepCopyRoleBinding()
	obj, err := bindingObject(binding)
	if err != nil {
		return nil, err
	}
	return binding, b.client.Create(b.ctx, obj)
}

func (b bindingClient) Update(binding reconciliation.RoleBinding) (reconciliation.RoleBinding, error) {
	binding = binding.DeepCopyRoleBinding()
	obj, err := bindingObject(binding)
	if err != nil {
		return nil, err
	}
	return binding, b.client.Update(b.ctx, obj)
}

func bindingObject(binding reconciliation.RoleBinding) (client.Object, error) {
	switch o := binding.(type) {
	case reconciliation.RoleBindingAdapter:
		return o.RoleBinding, nil
	case reconciliation.ClusterRoleBindingAdapter:
		return o.ClusterRoleBinding, nil
	}
	return nil, fmt.Errorf("a %T is no binding", binding)
}
